"""LoRA adapters, as PEFT saves them: experts whose tensors are the base's and a low-rank product.

An adapter has no config, tokenizer or weights of its own: on its base it has the base's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import regex
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.contract.problems import problems_of, shown
from app.contract.tensors import ADAPTER_PREFIX, ADAPTER_WEIGHTS, TensorHeader
from app.sources.key_prefixes import common_prefix, shared_start

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint

ADAPTER_CONFIG = "adapter_config.json"
OF_BASE = "base/"
"""What the files of the base begin with where an adapter's tensors name them."""

_PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
# Where PEFT keeps the tensors that it stores whole.
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
# What changes values in another way than by a product that is added.
_UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_qalora",
)  # fmt: skip
# With these the base was changed before training. They come back as `true` once PEFT has converted.
_CHANGES_BASE = re.compile(r"(pissa|olora|corda|loftq|lora_ga).*")
_MAGNITUDE = "lora_magnitude_vector"
_WAY_OUT = "merge the adapter into its model first (merge_and_unload of PEFT)"
_MOST_PATTERNS = 5_000
_PATTERN_SECONDS = 5.0

_T = TypeVar("_T")
_Rank = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class LowRankTensor(TensorHeader):
    """A tensor that is made of others: W + scaling·B·A, its transpose if `transposed`.

    With a `magnitude` each row is scaled to that norm (DoRA). File and offsets are W's.
    """

    weight: TensorHeader
    a: TensorHeader
    b: TensorHeader
    scaling: float
    transposed: bool
    magnitude: TensorHeader | None

    @property
    def parts(self) -> tuple[TensorHeader, ...]:
        """The stored tensors that it is made of, W first."""
        magnitude = () if self.magnitude is None else (self.magnitude,)
        return (self.weight, self.a, self.b, *magnitude)

    @property
    def size_bytes(self) -> int:
        """How many bytes are read for its values: W twice, if its rows' norms are needed."""
        again = 0 if self.magnitude is None else self.weight.size_bytes
        return again + sum(part.size_bytes for part in self.parts)

    @property
    def held_bytes(self) -> int:
        """How many bytes its factors have in memory, as float32."""
        return 4 * sum(part.numel for part in self.parts[1:])

    @property
    def change_rank(self) -> int | None:
        """The rank of B·A, if rows are not scaled besides."""
        return self.a.shape[0] if self.magnitude is None else None


class Adapter(BaseModel):
    """The fields of adapter_config.json that decide values. Its tensors' names say the modules."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    base_model_name_or_path: str | None = None
    r: _Rank = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: Annotated[dict[str, _Rank], Field(max_length=_MOST_PATTERNS)] | None = None
    alpha_pattern: Annotated[dict[str, float], Field(max_length=_MOST_PATTERNS)] | None = None


def read_adapter(config: Mapping[str, Any]) -> tuple[Adapter, list[str]]:
    """Return what an adapter_config.json says, and what of it keeps the adapter from merging."""
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    problems = []
    if kind != "LORA":
        problems.append(f"says peft_type {shown(kind)}, where only LORA can be merged")
    problems += [
        f"says {name} {shown(config[name])}, which cannot be merged"
        for name in _UNSUPPORTED
        if config.get(name)
    ]
    problems = [f"{text}; {_WAY_OUT}" for text in problems]
    if isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
        problems.append(
            f"says init_lora_weights {shown(start)}, which changes the base too; save the adapter "
            "again with path_initial_model_for_weight_conversion"
        )
    try:
        found = Adapter.model_validate(config)
    except ValidationError as error:
        found = Adapter()
        problems += [f"says {wrong.param}: {wrong.message}" for wrong in problems_of(error)]
    return found, [f"{ADAPTER_CONFIG} {text}" for text in problems]


def applied(
    checkpoint: ResolvedCheckpoint, base: ResolvedCheckpoint
) -> tuple[ResolvedCheckpoint, list[str]]:
    """Return an adapter with the tensors that it makes of its base's, and all that does not fit."""
    made = _Application(checkpoint, base)
    return (
        replace(
            checkpoint,
            config=base.config,
            documents=base.documents,
            languages=base.languages,
            tensors=made.tensors,
            prefix=made.prefix,
        ),
        made.problems,
    )


def stored_by_base(header: TensorHeader) -> bool:
    """Return whether the entries of an adapter's tensor are the base's, or are added to them."""
    return header.file.startswith(OF_BASE)


def linear_changes(expert: ResolvedCheckpoint) -> tuple[list[str], str | None]:
    """Return the tensors that an applied adapter changes, and what of it is no linear layer's LoRA.

    Only from such adapters can an adapter be made again.
    """
    changed = []
    for name, header in expert.tensors.items():
        if not stored_by_base(header):
            return [], f"stores {name} whole"
        if isinstance(header, LowRankTensor):
            if header.transposed or len(header.shape) != 2:
                return [], f"changes {name}, which is not a linear layer's weight as PEFT has it"
            changed.append(name)
    return changed, None


def names_another_base(adapter: Adapter, base: ResolvedCheckpoint) -> bool:
    """Return whether an adapter says that it was trained on a model of plainly another name."""
    theirs = (adapter.base_model_name_or_path or "").rstrip("/").rpartition("/")[2].lower()
    ours = base.name.lower()
    # A local copy of openai/whisper-base may be called base.
    return bool(theirs) and not theirs.endswith(ours) and not ours.endswith(theirs)


def _changed_by(name: str) -> str:
    """Return the base's tensor that an adapter's tensor changes, by its name behind the prefix."""
    part = _PART.fullmatch(name)
    return _WRAPPED.sub("", name) if part is None else f"{part[1]}.weight"


class _RefusedError(Exception):
    """What is wrong with a tensor, worded to follow its name."""


class _Application:
    """An adapter on its base: the tensors, and what does not fit."""

    def __init__(self, checkpoint: ResolvedCheckpoint, base: ResolvedCheckpoint) -> None:
        assert checkpoint.adapter is not None
        self._adapter, self._base = checkpoint.adapter, base
        self._tied = base.architecture.tied(base.config, [base.tensors])
        self._give_up_at = time.monotonic() + _PATTERN_SECONDS
        self.problems: list[str] = []
        self.tensors: dict[str, TensorHeader] = {
            name: replace(header, file=OF_BASE + header.file)
            for name, header in base.tensors.items()
            if name not in self._tied
        }
        # Wrappers of the adapted model, and of the model in it.
        outer, here, _ = shared_start([*checkpoint.tensors]).partition(ADAPTER_PREFIX)
        self._begins = (outer if here else "") + ADAPTER_PREFIX
        names = [name.removeprefix(self._begins) for name in checkpoint.tensors]
        self._begins += common_prefix(map(_changed_by, names), self.tensors)
        self.prefix = self._begins.replace(ADAPTER_PREFIX, "", 1)
        factors: dict[str, dict[str, TensorHeader]] = {}
        for header in checkpoint.tensors.values():
            with self._refusing(header):
                self._sort(header, factors)
        for module, found in factors.items():
            with self._refusing(next(iter(found.values()))):
                weight = self._target(f"{module}.weight")
                self.tensors[weight.name] = self._changed(module, weight, found)

    @contextmanager
    def _refusing(self, header: TensorHeader) -> Iterator[None]:
        try:
            yield
        except _RefusedError as error:
            self.problems.append(f"{ADAPTER_WEIGHTS}: {header.name} {error}")

    def _sort(self, header: TensorHeader, factors: dict[str, dict[str, TensorHeader]]) -> None:
        """Put a factor to the others of its module; a whole tensor replaces the base's."""
        rest = header.name.removeprefix(self._begins)
        part = _PART.fullmatch(rest)
        if rest == header.name or (part is None and "lora_" in rest):
            raise _RefusedError(
                f"is none of the tensors of a LoRA ({ADAPTER_PREFIX}….lora_A.weight)"
            )
        if part is not None:
            known = factors.setdefault(part[1], {})
            if part[2] in known:
                raise _RefusedError(f"is there twice, as {known[part[2]].name} too")
            known[part[2]] = header
            return
        if ".original_module." in rest:  # the base's own, which PEFT keeps beside a trained one
            return
        target = self._target(_changed_by(rest))
        if target.name in self._tied.values() and ".base_layer." not in rest:
            raise _RefusedError(f"replaces {target.name}, but not what the base ties to it")
        if header.shape != target.shape:
            raise _RefusedError(f"has the shape {list(header.shape)}, not {list(target.shape)}")
        self.tensors[target.name] = replace(header, name=target.name)

    def _target(self, name: str) -> TensorHeader:
        """Return the tensor that is to be changed."""
        if name in self._tied:
            raise _RefusedError(f"changes {name}, which the base ties to {self._tied[name]}")
        if name not in self.tensors:
            raise _RefusedError(f"changes {name}, which {self._base.uri} does not have")
        return self.tensors[name]

    def _changed(
        self, module: str, weight: TensorHeader, found: Mapping[str, TensorHeader]
    ) -> LowRankTensor:
        """Return a module's weight with its change."""
        embedding = "lora_embedding_A" in found
        pair = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        magnitude = found.get(_MAGNITUDE)
        if found.keys() - {_MAGNITUDE} != {*pair}:
            raise _RefusedError(f"is one of {', '.join(found)}; {' and '.join(pair)} are needed")
        if self._adapter.use_dora and magnitude is None:
            raise _RefusedError(f"has no {_MAGNITUDE}, but {ADAPTER_CONFIG} says use_dora")
        for header in (weight, *found.values()):
            if not header.is_float:
                raise _RefusedError(f"cannot be used: {header.name} is {header.dtype}")
        a, b = (found[name] for name in pair)
        rank = self._matched(self._adapter.rank_pattern, module, self._adapter.r)
        if a.shape[:1] != (rank,) or not b.shape or prod(b.shape[1:]) != rank:
            raise _RefusedError(
                f"and {b.name} have the shapes {list(a.shape)} and {list(b.shape)}; "
                f"{ADAPTER_CONFIG} says rank {rank}"
            )
        transposed = embedding or self._adapter.fan_in_fan_out
        shape = (a.shape[1:] + b.shape[:1]) if transposed else (b.shape[:1] + a.shape[1:])
        if shape != weight.shape:
            raise _RefusedError(
                f"and {b.name} change {list(shape)} entries; {weight.name} has {list(weight.shape)}"
            )
        if magnitude is not None and transposed:
            raise _RefusedError(f"has use_dora with an embedding or fan_in_fan_out; {_WAY_OUT}")
        if magnitude is not None and magnitude.numel != shape[0]:
            raise _RefusedError(f"has {magnitude.numel} magnitudes for {shape[0]} rows")
        alpha = self._matched(self._adapter.alpha_pattern, module, self._adapter.lora_alpha)
        scaling = alpha / (sqrt(rank) if self._adapter.use_rslora else rank)
        return LowRankTensor(
            name=weight.name,
            dtype="F32",
            shape=weight.shape,
            file=weight.file,
            start=weight.start,
            end=weight.end,
            weight=weight,
            a=a,
            b=b,
            scaling=scaling,
            transposed=transposed,
            magnitude=magnitude,
        )

    def _matched(self, patterns: Mapping[str, _T] | None, module: str, default: _T) -> _T:
        """Return the value of the first pattern that a module's name ends with, as PEFT does."""
        for pattern, value in (patterns or {}).items():
            seconds = max(0.001, self._give_up_at - time.monotonic())
            try:
                if regex.match(rf"(.*\.)?({pattern})$", module, timeout=seconds):
                    return value
            except (regex.error, TimeoutError):
                raise _RefusedError(
                    f"cannot be looked up: the pattern {shown(pattern)} in {ADAPTER_CONFIG} is no "
                    "regular expression, or takes too long"
                ) from None
        return default
