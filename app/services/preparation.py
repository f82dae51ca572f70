"""Turns a recipe into checked, pinned sources and a plan, without reading tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.contract.catalogue import CATALOGUE
from app.contract.errors import (
    AfluenteError,
    ConflictError,
    IncompatibleCheckpointError,
    InvalidCheckpointError,
    InvalidRequestError,
    NotFoundError,
    Problem,
    SourceError,
)
from app.contract.problems import shown
from app.contract.recipe import Recipe, Source
from app.contract.settings import Settings
from app.contract.tensors import AddedRows
from app.planning.plan import Plan, make_plan
from app.sources.adapters import applied, linear_changes, names_another_base
from app.sources.checkpoint import ResolvedCheckpoint, SourceFile
from app.sources.compatibility import CheckedTensors, check_compatible
from app.sources.completion import borrowed, missing
from app.sources.differences import added
from app.sources.key_prefixes import without_prefix
from app.sources.policy import SourcePolicy
from app.sources.resolve import read_file, resolve
from app.sources.schemes.bucket import place_in_bucket
from app.sources.tokenizers import states_ids, tokenizer_problems
from app.sources.vocabulary import (
    Growth,
    added_rows,
    cropped,
    grown_sizes,
    growth_of,
    with_rows,
    with_vocabulary,
)
from app.storage.artifacts import ArtifactStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

_AT_ONCE = 8
_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """A merge's checked sources and plan.

    The reference is the base if there is one, else the first checkpoint. The artifact takes its
    tensor names, ties, dtypes and companion files from it. `growth` and `rows` are those of a
    vocabulary that grew, `adapted` the matrices that an adapter is made of.
    """

    recipe: Recipe
    base: ResolvedCheckpoint | None
    experts: tuple[ResolvedCheckpoint, ...]
    checked: CheckedTensors
    plan: Plan
    warnings: tuple[dict[str, str], ...]
    growth: Growth | None = None
    rows: tuple[AddedRows, ...] = ()
    adapted: tuple[str, ...] = ()

    @property
    def reference(self) -> ResolvedCheckpoint:
        """The checkpoint from which the artifact takes everything except tensor values."""
        return self.base or self.experts[0]

    @property
    def as_written(self) -> ResolvedCheckpoint:
        """The reference as the artifact has it: without its tokenizer if the vocabulary grew."""
        if self.growth is None:
            return self.reference
        return with_vocabulary(self.reference, self.growth)

    @property
    def all(self) -> tuple[ResolvedCheckpoint, ...]:
        """The base, if there is one, and the experts."""
        return (self.base, *self.experts) if self.base else self.experts

    def sources(self, digests: Sequence[str | None] | None = None) -> dict[str, Any]:
        """Return the sources as a merge's record has them; `digests` are in the order of `all`."""
        digests = digests or [None] * len(self.all)
        documents: list[dict[str, Any]] = [
            {"uri": source.uri, "name": source.name, "resolved": found.resolved, "sha256": digest}
            for source, found, digest in zip(_sources(self.recipe), self.all, digests, strict=True)
        ]
        base = documents.pop(0) if self.base else None
        for document, source in zip(documents, self.recipe.checkpoints, strict=True):
            document["weight"] = source.weight
            if source.form is not None:
                document["form"] = source.form
        return {"base": base, "checkpoints": documents, "architecture": self.reference.summary()}


def source_policy(
    settings: Settings, engine: Engine | None, *, any_path: bool = False
) -> SourcePolicy:
    """Return the limits on sources; `any_path` lets the command line read all its user can."""
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    return SourcePolicy(
        cache_dir=settings.cache,
        file_roots=None if any_path else settings.roots,
        schemes=None if settings.schemes is None else frozenset(settings.schemes),
        allowed_hosts=frozenset(settings.allowed_hosts),
        buckets=None if any_path else tuple(map(place_in_bucket, settings.buckets)),
        hf_endpoint=settings.hf_endpoint,
        hf_token=token,
        allow_private_addresses=settings.allow_private_addresses,
        max_source_bytes=settings.max_source_bytes,
        merge_folder=None if engine is None else _merge_folder(engine, settings),
        timeout_seconds=settings.source_timeout_seconds,
    )


def prepare(
    recipe: Recipe, policy: SourcePolicy, *, pinned: Sequence[str] | None = None
) -> Prepared:
    """Resolve and check every source, and plan the merge; raises one error with all problems.

    `pinned` are resolved URIs from an earlier preparation, used instead of the recipe's.
    """
    sources = _sources(recipe)
    uris = list(pinned) if pinned is not None else [source.uri for source in sources]
    params = _params(recipe)
    resolved = _applied(recipe, _resolve_all(recipe, uris, policy), params)
    reference = resolved[0]
    base = reference if recipe.base else None
    first = 1 if recipe.base else 0
    experts = [_spelled_as(reference, one) for one in resolved[first:]]
    sizes = grown_sizes(reference, experts)
    cuts = [cropped(one, sizes[0]) if sizes else (one, {}) for one in experts]
    others = [one for one, _ in cuts[1 - first :]]
    checked, problems = check_compatible(
        reference, list(zip(params[1:], others, strict=True)), reference_param=params[0]
    )
    if problems:
        raise _one_error(IncompatibleCheckpointError, problems)
    _check_companions(resolved, params, policy)
    if recipe.output.also and (reason := reference.architecture.unconvertible(reference)):
        message = f"{recipe.output.also[0]}: {reason}."
        raise InvalidRequestError.of([Problem(message, "output.also")])
    growth = _growth(recipe, sizes, resolved[first:], params[first:], policy) if sizes else None
    rows = tuple(added_rows(growth, checked.tensors, [w for _, w in cuts])) if growth else ()
    carried = [
        with_rows(one, whole, rows, checked.tied, number)
        for number, (one, whole) in enumerate(cuts)
    ]
    copies = [
        replace(copy, checkpoint=number - (1 - first))
        for number, (_, found) in enumerate(carried)
        for copy in found
    ]
    checked = replace(checked, tied_copies=(*checked.tied_copies, *copies))
    found = tuple(one for one, _ in carried)
    if recipe.statistics and (reason := not_in_memory(reference, growth)):
        raise InvalidRequestError.of(
            [Problem(f"{reason}; it cannot be calibrated.", "calibration")]
        )
    adapted = _adapted(found, params[first:]) if recipe.output.form == "lora" else ()
    plan = make_plan(
        recipe,
        checked.tensors,
        base.tensors if base else None,
        [one.tensors for one in found],
        rows,
        adapted,
    )
    warnings = _warnings(recipe, plan, reference, found, growth)
    return Prepared(recipe, base, found, checked, plan, warnings, growth, rows, adapted)


def replan(prepared: Prepared, recipe: Recipe) -> Prepared:
    """Return the same sources with a plan for another recipe."""
    base = prepared.base.tensors if prepared.base else None
    experts = [expert.tensors for expert in prepared.experts]
    plan = make_plan(
        recipe, prepared.checked.tensors, base, experts, prepared.rows, prepared.adapted
    )
    warnings = _warnings(recipe, plan, prepared.reference, prepared.experts, prepared.growth)
    return replace(prepared, recipe=recipe, plan=plan, warnings=warnings)


def _sources(recipe: Recipe) -> list[Source]:
    return [*([recipe.base] if recipe.base else []), *recipe.checkpoints]


def _params(recipe: Recipe) -> list[str]:
    experts = [f"checkpoints[{index}].uri" for index in range(len(recipe.checkpoints))]
    return ["base.uri", *experts] if recipe.base else experts


def _resolve_all(
    recipe: Recipe, uris: Sequence[str], policy: SourcePolicy
) -> list[ResolvedCheckpoint]:
    def attempt(uri: str, param: str, source: Source) -> ResolvedCheckpoint | SourceError:
        try:
            return resolve(uri, policy, param=param, difference=source.form == "difference")
        except SourceError as error:
            # Frees the frames, which hold the source's headers.
            error.__traceback__ = error.__context__ = None
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        outcomes = list(pool.map(attempt, uris, _params(recipe), _sources(recipe)))
    errors = [outcome for outcome in outcomes if isinstance(outcome, SourceError)]
    if not errors:
        return [outcome for outcome in outcomes if isinstance(outcome, ResolvedCheckpoint)]
    problems = [problem for error in errors for problem in error.as_problems()]
    # Raise the first error that is not retryable: a retry would not help the others.
    lasting = [error for error in errors if not error.retryable]
    raise _one_error(type((lasting or errors)[0]), problems)


def _applied(
    recipe: Recipe, resolved: Sequence[ResolvedCheckpoint], params: Sequence[str]
) -> list[ResolvedCheckpoint]:
    """Return the checkpoints, those that need a base with the tensors that they make of its."""
    base, found, problems = resolved[0], [], []
    for one, param in zip(resolved, params, strict=True):
        full, wrong = one, []
        if one.adapter and (one is base or recipe.base is None):
            wrong = ["a LoRA adapter; the base must be the full checkpoint that it was trained on"]
        elif one.adapter and not base.adapter:
            full, wrong = applied(one, base)
        elif one.difference:
            full = added(one, base)
        found.append(full)
        problems += [Problem(f"{one.uri}: {text}", param) for text in wrong]
    if problems:
        raise _one_error(IncompatibleCheckpointError, problems)
    return found


def _adapted(experts: Sequence[ResolvedCheckpoint], params: Sequence[str]) -> tuple[str, ...]:
    """Return the matrices that adapters change; raises if an expert is no adapter of them alone."""
    changed: dict[str, None] = {}
    problems = []
    for expert, param in zip(experts, params, strict=True):
        names, wrong = linear_changes(expert) if expert.adapter else ([], "is no LoRA adapter")
        changed |= dict.fromkeys(names)
        if wrong:
            message = f'{expert.uri}: it {wrong}; output.form "lora" merges adapters of linear '
            problems.append(Problem(message + "layers only", param))
    if problems:
        raise _one_error(IncompatibleCheckpointError, problems)
    return tuple(sorted(changed))


def _spelled_as(reference: ResolvedCheckpoint, other: ResolvedCheckpoint) -> ResolvedCheckpoint:
    tensors, prefix = without_prefix(other.tensors, reference.tensors)
    spelled = reference.architecture.spelled_as(reference.tensors, tensors)
    return replace(other, tensors=spelled, prefix=other.prefix + prefix)


def _check_companions(
    resolved: Sequence[ResolvedCheckpoint], params: Sequence[str], policy: SourcePolicy
) -> None:
    """Raise if the reference lacks files for decoding, or another tokenizer differs from its."""
    reference, others = resolved[0], list(zip(params[1:], resolved[1:], strict=True))
    lacking = missing(reference)
    if lacking:
        problem = (
            f"{reference.uri}: it has {' and '.join(lacking)}; copy the files from the model that "
            "was fine-tuned"
        )
        raise _one_error(InvalidCheckpointError, [Problem(problem, params[0])])
    having = [(param, other) for param, other in others if states_ids(other)]
    if not states_ids(reference):
        return

    def read(checkpoint: ResolvedCheckpoint, file: SourceFile) -> bytes:
        return read_file(checkpoint, file, policy)

    differences = tokenizer_problems(reference, [other for _, other in having], read)
    problems = [
        Problem(f"{other.uri}: {message}", param)
        for (param, other), messages in zip(having, differences, strict=True)
        for message in messages
    ]
    if problems:
        raise _one_error(IncompatibleCheckpointError, problems)


def not_in_memory(reference: ResolvedCheckpoint, growth: Growth | None) -> str | None:
    """Return why merges cannot be put into the loaded reference to be tried; None if they can."""
    if growth is not None:
        return "An expert has tokens beyond the reference's"
    if reference.prefix:
        return (
            f'The tensors of {reference.uri} are named with the prefix "{reference.prefix}" (merge '
            "it alone to write it without)"
        )
    return None


def _growth(
    recipe: Recipe,
    sizes: tuple[int, tuple[int, ...]],
    experts: Sequence[ResolvedCheckpoint],
    params: Sequence[str],
    policy: SourcePolicy,
) -> Growth:
    """Return the tokens that experts have beyond the reference's; raises if they contradict."""

    def read(checkpoint: ResolvedCheckpoint, file: SourceFile) -> bytes:
        return read_file(checkpoint, file, policy)

    names = [source.name for source in recipe.checkpoints]
    growth, problems = growth_of(sizes, list(zip(params, names, experts, strict=True)), read)
    if problems:
        raise _one_error(IncompatibleCheckpointError, problems)
    return growth


def _grown(recipe: Recipe, growth: Growth) -> dict[str, str]:
    """Return the warning that tokens were added."""
    names = [source.name for source in recipe.checkpoints]
    whose = [n for n, size in zip(names, growth.sizes, strict=True) if size > growth.reference_size]
    added = [shown(token) for token in growth.tokens.values()]
    more = f" and {len(added) - _SHOWN:,} more" if len(added) > _SHOWN else ""
    listed = f" ({', '.join(added[:_SHOWN])}{more})" if added else ""
    message = (
        f"{', '.join(whose)}: {growth.size - growth.reference_size:,} rows beyond the "
        f"{growth.reference_size:,} of the reference{listed} are carried over as they are, and the "
        f"tokenizer is that of {names[growth.lender]}."
    )
    return {"code": "vocabulary_grew", "message": message}


def _borrowing(
    recipe: Recipe, reference: ResolvedCheckpoint, experts: Sequence[ResolvedCheckpoint]
) -> Iterator[dict[str, str]]:
    """Yield a warning for each checkpoint that is decoded with the reference's files."""
    whose = "the base" if recipe.base else recipe.checkpoints[0].name
    for source, expert in zip(recipe.checkpoints, experts, strict=True):
        files = () if expert.needs_base else borrowed(expert, reference)
        if files:
            message = f"{source.name} lacks files; those of {whose} are used: {', '.join(files)}."
            yield {"code": "companions_from_base", "message": message}


def _of_other_bases(
    recipe: Recipe, reference: ResolvedCheckpoint, experts: Sequence[ResolvedCheckpoint]
) -> Iterator[dict[str, str]]:
    """Yield a warning for each adapter that says it was trained on another model."""
    for source, expert in zip(recipe.checkpoints, experts, strict=True):
        if expert.adapter and names_another_base(expert.adapter, reference):
            message = (
                f"{source.name} is an adapter of {shown(expert.adapter.base_model_name_or_path)}, "
                f"and the base is {reference.uri}: it is only right if they are the same model."
            )
            yield {"code": "adapter_of_another_base", "message": message}


def _prefixed(recipe: Recipe, prepared: Sequence[ResolvedCheckpoint]) -> Iterator[dict[str, str]]:
    """Yield a warning for each checkpoint whose tensors have a prefix."""
    for source, found in zip(_sources(recipe), prepared, strict=True):
        if found.prefix:
            message = (
                f'The tensors of {source.name} are named with the prefix "{found.prefix}", which '
                "is left out."
            )
            yield {"code": "key_prefix", "message": message}


def _one_error(kind: type[AfluenteError], problems: Sequence[Problem]) -> AfluenteError:
    first = problems[0]
    more = f" (and {len(problems) - 1} more, see errors)" if len(problems) > 1 else ""
    return kind(first.message + more, param=first.param, problems=problems)


def _warnings(
    recipe: Recipe,
    plan: Plan,
    reference: ResolvedCheckpoint,
    experts: Sequence[ResolvedCheckpoint],
    growth: Growth | None,
) -> tuple[dict[str, str], ...]:
    warnings = list(_borrowing(recipe, reference, experts))
    warnings += _prefixed(recipe, (reference, *experts) if recipe.base else experts)
    warnings += _of_other_bases(recipe, reference, experts)
    if growth is not None:
        warnings.append(_grown(recipe, growth))
    negative = [source.name for source in recipe.checkpoints if source.weight < 0]
    if negative:
        message = f"Negative weights subtract these checkpoints: {', '.join(negative)}."
        warnings.append({"code": "negative_weight", "message": message})
    alone = recipe.base is None or not CATALOGUE[recipe.method].counts_base
    if len(recipe.checkpoints) == 1 and alone:
        title = CATALOGUE[recipe.method].title
        message = f"{title} of a single checkpoint has nothing to merge."
        warnings.append({"code": "single_checkpoint", "message": message})
    for match in plan.unmatched_rules:
        message = f'The rule "{match}" has no effect: no tensor matches, or an earlier rule does.'
        warnings.append({"code": "unmatched_rule", "message": message})
    return tuple(warnings)


def _merge_folder(engine: Engine, settings: Settings) -> Any:
    # Imported late: SQLAlchemy takes 0.15 s, and the command line has no database.
    from app.storage import merges

    store = ArtifactStore(settings.artifacts)

    def folder(merge_id: str) -> Path:
        row = merges.get(engine, merge_id)
        if row is None:
            raise NotFoundError(f"The merge {merge_id} does not exist.")
        if row["status"] != "succeeded" or row["artifact_folder"] is None:
            raise ConflictError(f"The merge {merge_id} is {row['status']} and has no artifact.")
        return store.published_folder(str(row["artifact_folder"]))

    return folder
