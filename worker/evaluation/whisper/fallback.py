"""Whisper's temperature fallback: loops and unlikely hypotheses are sampled again.

The rules and thresholds are those of OpenAI's transcribe.py, for one window at a time. Utterances
are processed one by one, each with its own seed, so the batch does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from app.contract.evaluation import Fallback
from app.reports.scoring import compression_ratio
from worker.evaluation.whisper.checkpoint import WhisperFacts


class TemperatureFallback:
    """Checks the hypotheses of a loaded model, and replaces bad ones by sampling."""

    def __init__(
        self,
        model: Any,
        facts: WhisperFacts,
        generation: Any,
        text_of: Callable[[Sequence[int]], str],
    ) -> None:
        """Use a transformers Whisper, the settings of its search, and a tokenizer's decoding."""
        self.model, self.facts, self.text_of = model, facts, text_of
        self.rules = Fallback()
        # OpenAI samples a single hypothesis from the whole distribution.
        self.sampling = deepcopy(generation)
        self.sampling.num_beams, self.sampling.top_k = 1, 0
        own = facts.constraints(num_beams=1)
        self.suppressed = own.get("suppress_tokens", [])
        self.suppressed_first = own.get("begin_suppress_tokens", [])

    @torch.inference_mode()
    def apply(
        self,
        features: Tensor,
        hypothesis: list[int],
        spoken: Mapping[str, str | None],
        seed: int,
        *,
        timestamps: bool = False,
    ) -> list[int]:
        """Return a window's tokens: `hypothesis`, sampled tokens, or none in silence.

        `features` is (1, bins, frames). `hypothesis` is from the search at temperature 0, without
        prompt and end token. `spoken` is language and task, empty for an English-only model. The
        same seed gives the same tokens.
        """
        encoded = self.model.get_encoder()(features)
        prompt, no_speech = self._prompt(encoded, spoken, timestamps=timestamps)
        for number, temperature in enumerate(self.rules.temperatures):
            if temperature > 0:
                hypothesis = self._sample(encoded, spoken, temperature, seed + number, timestamps)
            unlikely = self._mean_logprob(encoded, prompt, hypothesis) < self.rules.logprob
            if unlikely and no_speech > self.rules.no_speech:
                return []
            ratio = compression_ratio(self.text_of(hypothesis))
            if not unlikely and ratio <= self.rules.compression_ratio:
                break
        return hypothesis

    def _prompt(
        self, encoded: BaseModelOutput, spoken: Mapping[str, str | None], *, timestamps: bool
    ) -> tuple[list[int], float]:
        """Return (prompt, P(no speech))."""
        facts = self.facts
        first = self._logits(encoded, [facts.start])[0]
        # In Whisper's vocabulary, <|nospeech|> precedes <|notimestamps|>.
        silence = None if facts.no_timestamps is None else facts.no_timestamps - 1
        no_speech = 0.0 if silence is None else float(first.softmax(-1)[silence])
        prompt = [facts.start]
        if facts.multilingual:
            prompt.append(facts.languages[str(spoken["language"])])
            prompt.append(facts.tasks[spoken.get("task") or "transcribe"])
        if facts.no_timestamps is not None and not timestamps:
            prompt.append(facts.no_timestamps)
        return prompt, no_speech

    def _sample(
        self,
        encoded: BaseModelOutput,
        spoken: Mapping[str, str | None],
        temperature: float,
        seed: int,
        timestamps: bool,
    ) -> list[int]:
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            (tokens,) = self.model.generate(
                encoder_outputs=encoded,
                generation_config=self.sampling,
                temperature=temperature,
                return_timestamps=timestamps,
                force_unique_generate_call=True,
                **spoken,
            ).tolist()
        return until_end(tokens, self.facts.ends)

    def _mean_logprob(
        self, encoded: BaseModelOutput, prompt: Sequence[int], hypothesis: Sequence[int]
    ) -> float:
        """Return the mean log probability of the tokens and the end token after them."""
        room = int(self.facts.config["max_target_positions"]) - len(prompt)
        tokens = [*hypothesis, self.facts.ends[0]][:room]
        logits = self._logits(encoded, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        logits[:, self.suppressed] = -torch.inf
        logits[0, self.suppressed_first] = -torch.inf
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        return float(logits.log_softmax(-1).gather(1, chosen).mean())

    def _logits(self, encoded: BaseModelOutput, tokens: Sequence[int]) -> Tensor:
        """Return the logits after each token, (tokens, vocabulary), float32."""
        row = torch.tensor([tokens], device=self.model.device)
        found: Tensor = self.model(encoder_outputs=encoded, decoder_input_ids=row).logits
        return found[0].float()


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first end token."""
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), None)]
