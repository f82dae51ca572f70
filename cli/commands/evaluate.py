"""`afluente evaluate`: word error rates of a checkpoint, without the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Device

if TYPE_CHECKING:
    from app.contract.evaluation import EvaluationSpec


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    manifest: Annotated[
        list[str],
        typer.Option(
            "--manifest",
            "-m",
            help="A dataset: its manifest or folder (docs/evaluation.md), with ?split=test and "
            "the like if needed, or hf://datasets/organisation/name; may be repeated.",
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="open_asr: normaliser, beams, batch and language (en) as on the Open ASR "
            "Leaderboard; the other options take precedence."
        ),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Spoken language: pt, en, ...")] = None,
    normalizer: Annotated[
        str | None,
        typer.Option(help="none, basic (the default), english, open_asr, portuguese, ..."),
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option(help="1 decodes greedily. Default: 5, or 1 for models without beams."),
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="default, or temperature_fallback: decode loops again.")
    ] = None,
    voice_activity: Annotated[
        bool,
        typer.Option(
            "--voice-activity",
            help="Find the speech in long audio first, and decode only that (afluente[vad]).",
        ),
    ] = False,
    backend: Annotated[
        str, typer.Option(help="default, or ctranslate2_int8, _float16, _float32: convert first.")
    ] = "default",
    batch_size: Annotated[
        int | None, typer.Option(help="Utterances decoded at once, 16 by default.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, as the API does.")] = False,
    device: Device = None,
) -> None:
    """Decode datasets with a checkpoint and print its word error rates.

    The exit status is 1 if an utterance could not be decoded; the rates exclude it.
    """
    import json
    from shutil import get_terminal_size

    from app.contract.errors import EvaluationFailedError, SourceNotFoundError
    from app.reports.rendering import render_table
    from cli.configuration import SERVICE_ONLY, load_settings
    from cli.progress import ProgressReport

    spec = _spec(
        manifest,
        preset=preset,
        language=language,
        normalizer=normalizer,
        num_beams=num_beams,
        search=search,
        voice_activity=voice_activity,
        backend=backend,
        batch_size=batch_size,
    )
    settings = load_settings(SERVICE_ONLY, device=device)
    folder = checkpoint.expanduser().resolve()
    if not folder.is_dir():
        raise SourceNotFoundError(f"The checkpoint folder {folder} does not exist.")
    with ProgressReport() as report:
        from worker.evaluation.local import evaluate_checkpoint

        document = evaluate_checkpoint(folder, spec, settings, report.advance)
    skipped = [
        f"{dataset['name']}: {one['audio']}: {one['reason']}"
        for dataset in document["datasets"]
        for one in dataset["warnings"]["skipped"]
    ]
    if json_:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for line in skipped:
            typer.echo(f"warning: {line}", err=True)
        for dataset in document["datasets"]:
            for one in dataset["warnings"]["audio"]:
                line = f"{dataset['name']}: {one['audio']}: {one['message']}"
                typer.echo(f"warning: {line}", err=True)
        typer.echo("word error rates in percent")
        width = get_terminal_size().columns
        typer.echo(render_table(document, labels=[folder.name], width=width), nl=False)
    if document["status"] != "succeeded":
        raise EvaluationFailedError(
            f"{len(skipped)} utterances could not be decoded, first {skipped[0]}"
            if skipped
            else "a dataset has no utterances"
        )


def _spec(manifests: list[str], **options: object) -> EvaluationSpec:
    """Return the evaluation; a dataset is named after its manifest, or the manifest's folder."""
    from pydantic import ValidationError

    from app.contract.errors import InvalidRequestError
    from app.contract.evaluation import EvaluationSpec
    from app.contract.problems import problems_of

    datasets = [{"name": _name(uri), "uri": uri} for uri in map(_absolute, manifests)]
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return EvaluationSpec.model_validate({"datasets": datasets, **given})
    except ValidationError as error:
        raise InvalidRequestError.of(problems_of(error, EvaluationSpec)) from None


def _absolute(manifest: str) -> str:
    """Return a path as an absolute one; a URI as it is."""
    return manifest if "://" in manifest else str(Path(manifest).expanduser().absolute())


def _name(uri: str) -> str:
    path = Path(uri)
    if path.is_dir():
        return path.name
    if not path.exists():
        path = Path(uri.partition("?")[0].partition("@")[0])
    unnamed = {"manifest", "metadata", "wav"}
    return path.parent.name if path.stem in unnamed else path.stem
