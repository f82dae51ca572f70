"""What a search must obey, as a generation config says it, and whether this package can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# What the searches here obey; a checkpoint with any other constraint is left to transformers.
_OBEYED = {
    "begin_suppress_tokens",
    "early_stopping",
    "length_penalty",
    "max_new_tokens",
    "suppress_tokens",
}


@dataclass(frozen=True)
class Rules:
    """What a search may not say, when it ends, and how hypotheses of any length compare."""

    end: int
    max_length: int
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    suppressed: Tensor
    suppressed_at_begin: Tensor

    def silence(self, scores: Tensor, *, first: bool) -> Tensor:
        """Return the scores, (rows, vocabulary), with minus infinity put where it is forbidden."""
        scores.index_fill_(1, self.suppressed, -torch.inf)
        if first:
            scores.index_fill_(1, self.suppressed_at_begin, -torch.inf)
        return scores


def why_not(
    constraints: Mapping[str, Any], activation: str, vocabulary: int, num_beams: int
) -> str | None:
    """Return what keeps this package from a search under these constraints, if anything.

    `activation` and `vocabulary` (its size) are the model's. What it can: utterances of one window,
    without timestamps, greedily or with beams.
    """
    if activation != "gelu":
        return f"activation_function is {activation}"
    other = sorted(constraints.keys() - _OBEYED)
    if other:
        return f"{other[0]} is {constraints[other[0]]}"
    silent = sum(
        len(constraints.get(key, ())) for key in ("suppress_tokens", "begin_suppress_tokens")
    )
    if vocabulary - silent < 2 * num_beams:
        return "the vocabulary is too small for so many beams"
    return None


def rules_of(settings: Mapping[str, Any], config: Any, prompt_length: int) -> Rules:
    """Return the rules of a search that goes on from a prompt of that many tokens."""
    limit = int(config.max_target_positions)

    def tokens(key: str) -> Tensor:
        chosen = [token for token in settings.get(key) or () if 0 <= token < config.vocab_size]
        return torch.tensor(chosen, dtype=torch.int64)

    penalty = settings.get("length_penalty")
    return Rules(
        end=settings["eos_token_id"],
        max_length=min(settings["max_length"] + min(prompt_length, limit // 2 - 1), limit),
        num_beams=settings.get("num_beams") or 1,
        length_penalty=1.0 if penalty is None else penalty,
        early_stopping=settings.get("early_stopping") or False,
        suppressed=tokens("suppress_tokens"),
        suppressed_at_begin=tokens("begin_suppress_tokens"),
    )
