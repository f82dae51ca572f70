"""What a search must obey, as a generation config says it, and whether this package can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# Settings that change a search and are not searched with here, with what switches them off;
# None and False do so everywhere.
_LEFT_TO_TRANSFORMERS: Mapping[str, object] = {
    "bad_words_ids": None,
    "compression_ratio_threshold": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "is_assistant": False,
    "logprob_threshold": None,
    "low_memory": False,
    "max_new_tokens": None,
    "max_time": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "no_speech_threshold": None,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "prompt_lookup_num_tokens": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "speculation_type": None,
    "stop_strings": None,
    "token_healing": False,
    "use_mtp": False,
    "watermarking_config": None,
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


def why_not(settings: Mapping[str, Any], config: Any) -> str | None:
    """Return what keeps this package from the search that the settings ask for, if anything.

    `settings` are a generation config's, `config` is the model's. What it can: utterances of one
    window, without timestamps, greedily or with beams.
    """
    if config.activation_function != "gelu":
        return f"activation_function is {config.activation_function}"
    if getattr(config, "forced_decoder_ids", None):
        return "config.json has forced_decoder_ids"
    for key, off in _LEFT_TO_TRANSFORMERS.items():
        if settings.get(key) not in (None, False, off):
            return f"{key} is {settings[key]}"
    end = settings.get("eos_token_id")
    if not isinstance(end, int) or settings.get("pad_token_id") != end:
        return "padding is not the one end token"
    if settings.get("max_length") is None:
        return "no max_length"
    if settings.get("num_return_sequences", 1) not in (None, 1):
        return "several hypotheses an utterance"
    silent = sum(
        len(settings.get(key) or ()) for key in ("suppress_tokens", "begin_suppress_tokens")
    )
    if config.vocab_size - silent < 2 * (settings.get("num_beams") or 1):
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
