"""Whisper's temperature fallback: what looks like a loop or a guess is sampled again.

The rules and thresholds are those of OpenAI's transcribe.py, for one window at a time. Everything
is computed an utterance at a time, with a seed of its own: the batch decides nothing.
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
from worker.evaluation.checkpoint import CheckpointFacts


class Reconsideration:
    """Judges hypotheses of a loaded model, and samples others for those that are not good."""

    def __init__(
        self,
        model: Any,
        facts: CheckpointFacts,
        generation: Any,
        text_of: Callable[[Sequence[int]], str],
    ) -> None:
        """Take a transformers Whisper, the settings of its search, and a tokenizer's decoding."""
        self.model, self.facts, self.text_of = model, facts, text_of
        self.rules = Fallback()
        # OpenAI samples one hypothesis from the whole distribution.
        self.sampling = deepcopy(generation)
        self.sampling.num_beams, self.sampling.top_k = 1, 0
        own = facts.constraints(num_beams=1)
        self.never = own.get("suppress_tokens", [])
        self.never_first = own.get("begin_suppress_tokens", [])

    @torch.inference_mode()
    def settle(
        self,
        features: Tensor,
        said: list[int],
        spoken: Mapping[str, str | None],
        seed: int,
        *,
        timestamps: bool = False,
    ) -> list[int]:
        """Return the tokens to keep of a window: those `said`, sampled ones, or none in silence.

        `features` is (1, bins, frames); `said` is without prompt and end, from the search at
        temperature 0; `spoken` is language and task, empty for an English-only model. The same
        seed gives the same tokens.
        """
        encoded = self.model.get_encoder()(features)
        prompt, told, no_speech = self._open(encoded, spoken, timestamps=timestamps)
        for number, temperature in enumerate(self.rules.temperatures):
            if temperature > 0:
                said = self._sample(encoded, told, temperature, seed + number, timestamps)
            guessed = self._mean_logprob(encoded, prompt, said) < self.rules.logprob
            if guessed and no_speech > self.rules.no_speech:
                return []
            ratio = compression_ratio(self.text_of(said))
            if not guessed and ratio <= self.rules.compression_ratio:
                break
        return said

    def _open(
        self, encoded: BaseModelOutput, spoken: Mapping[str, str | None], *, timestamps: bool
    ) -> tuple[list[int], dict[str, str | None], float]:
        """Return (prompt, language and task, the language detected if not told; P(no speech))."""
        facts, told = self.facts, dict(spoken)
        first = self._logits(encoded, [facts.start])[0]
        # Whisper's token for silence is the one before.
        silence = None if facts.no_timestamps is None else facts.no_timestamps - 1
        no_speech = 0.0 if silence is None else float(first.softmax(-1)[silence])
        prompt = [facts.start]
        if facts.multilingual:
            codes = sorted(facts.languages, key=lambda code: facts.languages[code])
            likeliest = first[[facts.languages[code] for code in codes]].argmax()
            told["language"] = told.get("language") or codes[int(likeliest)]
            prompt.append(facts.languages[str(told["language"])])
            prompt.append(facts.tasks[told.get("task") or "transcribe"])
        if facts.no_timestamps is not None and not timestamps:
            prompt.append(facts.no_timestamps)
        return prompt, told, no_speech

    def _sample(
        self,
        encoded: BaseModelOutput,
        told: Mapping[str, str | None],
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
                **told,
            ).tolist()
        return until_end(tokens, self.facts.ends)

    def _mean_logprob(
        self, encoded: BaseModelOutput, prompt: Sequence[int], said: Sequence[int]
    ) -> float:
        """Return the mean log probability of the tokens and the end token after them."""
        room = int(self.facts.config["max_target_positions"]) - len(prompt)
        tokens = [*said, self.facts.ends[0]][:room]
        logits = self._logits(encoded, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        logits[:, self.never] = -torch.inf
        logits[0, self.never_first] = -torch.inf
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        return float(logits.log_softmax(-1).gather(1, chosen).mean())

    def _logits(self, encoded: BaseModelOutput, tokens: Sequence[int]) -> Tensor:
        """Return the logits after each token, (tokens, vocabulary), float32."""
        row = torch.tensor([tokens], device=self.model.device)
        found: Tensor = self.model(encoder_outputs=encoded, decoder_input_ids=row).logits
        return found[0].float()


def until_end(said: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first end token."""
    return said[: next((at for at, token in enumerate(said) if token in ends), None)]
