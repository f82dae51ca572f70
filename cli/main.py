"""The `afluente` command. Subcommands import what they need when they run."""

from __future__ import annotations

from app.isolation import isolate  # isort: split

isolate()

import sys
from typing import Annotated

import typer

from app.contract.errors import AfluenteError
from cli.commands import (
    api,
    evaluate,
    keys,
    merge,
    methods,
    settings,
    study,
    submit,
    up,
    utterances,
    wer,
    worker,
)

application = typer.Typer(
    name="afluente",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Settings are environment variables AFLUENTE_*: `afluente settings` lists them.",
)
application.command("up")(up.up)
application.command("api")(api.api)
application.command("worker")(worker.worker)
application.command("merge")(merge.merge)
application.command("evaluate")(evaluate.evaluate)
application.command("methods")(methods.methods)
application.command("submit")(submit.submit)
application.command("study")(study.study)
application.command("wer")(wer.wer)
application.command("utterances")(utterances.utterances)
application.command("settings")(settings.settings)
application.add_typer(keys.application, name="keys")


@application.callback()
def _afluente(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks; allowed anywhere in the command."),
    ] = False,
) -> None:
    """Merge fine-tuned Whisper checkpoints, and measure the merge's word error rate."""


def main() -> None:
    """Run the command line; print failures as one line on stderr."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        application(args=[word for word in arguments if word != "--debug"], prog_name="afluente")
    except AfluenteError as error:
        if debug:
            raise
        typer.echo(f"afluente: {_text(error)}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"afluente: {type(error).__name__}: {error} (--debug shows the traceback)", err=True
        )
        sys.exit(1)


def _text(error: AfluenteError) -> str:
    """Return the message of a single problem, or the title and a line for each problem."""
    if len(error.problems) < 2:
        return error.message
    lines = (f"{problem.param or 'request'}: {problem.message}" for problem in error.problems)
    return "\n  - ".join((f"{error.title}:", *lines))


if __name__ == "__main__":
    main()
