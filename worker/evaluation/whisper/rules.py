"""The constraints of a search from a generation config, and whether this package supports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# The supported constraints; transformers decodes checkpoints with any other.
_SUPPORTED = {
    "begin_suppress_tokens",
    "early_stopping",
    "length_penalty",
    "max_new_tokens",
    "suppress_tokens",
}


@dataclass(frozen=True)
class Rules:
    """The suppressed tokens of a search, when it ends, and how it scores hypotheses."""

    end: int
    max_length: int
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    suppressed: Tensor
    suppressed_at_begin: Tensor

    def suppress(self, scores: Tensor, *, first: bool) -> Tensor:
        """Return the scores, (rows, vocabulary), set to minus infinity for suppressed tokens."""
        scores.index_fill_(1, self.suppressed, -torch.inf)
        if first:
            scores.index_fill_(1, self.suppressed_at_begin, -torch.inf)
        return scores


def unsupported(
    constraints: Mapping[str, Any], activation: str, vocabulary: int, num_beams: int
) -> str | None:
    """Return why this package cannot search with these constraints; None if it can.

    `activation` and `vocabulary` (its size) are the model's. Supported are utterances of one
    window, without timestamps, greedily or with beams.
    """
    if activation != "gelu":
        return f"activation_function is {activation}"
    other = sorted(constraints.keys() - _SUPPORTED)
    if other:
        return f"{other[0]} is {constraints[other[0]]}"
    suppressed = sum(
        len(constraints.get(key, ())) for key in ("suppress_tokens", "begin_suppress_tokens")
    )
    if vocabulary - suppressed < 2 * num_beams:
        return "the vocabulary is too small for so many beams"
    return None


def rules_of(settings: Mapping[str, Any], config: Any, prompt_length: int) -> Rules:
    """Return the rules of a search after a prompt of `prompt_length` tokens."""
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
