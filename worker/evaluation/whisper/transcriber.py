"""Whisper by this package: the same hypotheses as transformers' `generate`, in less time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from worker.evaluation.whisper.beams import search_beams
from worker.evaluation.whisper.decoder import Decoder
from worker.evaluation.whisper.encoder import Encoder
from worker.evaluation.whisper.greedy import search_greedily
from worker.evaluation.whisper.memory import Memory
from worker.evaluation.whisper.rules import rules_of


class Transcriber:
    """A loaded Whisper and the settings of its search."""

    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        """Take over the weights of a transformers model on a CPU; `why_not` must be None."""
        self.config = model.config
        self.settings = settings
        self.encoder = Encoder(model.model.encoder)
        self.decoder = Decoder(model)

    def transcribe(
        self, features: Tensor, language: str | None, task: str | None
    ) -> list[list[int] | None]:
        """Return the tokens that each utterance says, without prompt and end token.

        `features` is (utterances, bins, frames), one window each. `language` None is left to the
        model, if it knows any. None stands for an utterance that the model divided by time stamps:
        what is to follow is for `generate` to say.
        """
        memory = self._hear(features)
        prompts = self._prompts(memory, language, task)
        rules = rules_of(self.settings, self.config, prompts.shape[1])
        search = search_greedily if rules.num_beams == 1 else search_beams
        hypotheses = search(self.decoder, memory, prompts, rules)
        return [None if self._is_divided(said) else said for said in hypotheses]

    def _is_divided(self, said: list[int]) -> bool:
        plain = self.settings.get("no_timestamps_token_id")
        return plain is not None and any(first > plain < then for first, then in pairwise(said))

    def _hear(self, features: Tensor) -> Memory:
        memory = self.decoder.new_memory(len(features), self.config.max_source_positions)

        def hear(slot: int) -> None:
            with torch.inference_mode():
                self.decoder.listen(memory, slot, self.encoder.encode(features[slot]))

        # An utterance a thread, not a product over all threads: nobody waits for another.
        threads = torch.get_num_threads()
        at_once = min(threads, len(features))
        each = (threads // at_once,)
        try:
            with ThreadPoolExecutor(at_once, "hear", torch.set_num_threads, each) as pool:
                list(pool.map(hear, range(len(features))))
        finally:
            # In OpenMP the number is a thread's own, in MKL everyone's.
            torch.set_num_threads(threads)
        return memory

    def _prompts(self, memory: Memory, language: str | None, task: str | None) -> Tensor:
        start = torch.full((memory.slots, 1), self.settings["decoder_start_token_id"])
        columns = [start]
        if language or self.settings.get("lang_to_id"):
            columns.append(self._languages(memory, start, language))
        if task or language:
            columns.append(
                start.new_full(start.shape, self.settings["task_to_id"][task or "transcribe"])
            )
        if self.settings.get("no_timestamps_token_id") is not None:
            columns.append(start.new_full(start.shape, self.settings["no_timestamps_token_id"]))
        return torch.cat(columns, dim=1)

    def _languages(self, memory: Memory, start: Tensor, language: str | None) -> Tensor:
        known = self.settings["lang_to_id"]
        if language:
            return start.new_full(start.shape, known[f"<|{language}|>"])
        tokens = torch.tensor(sorted(known.values()))
        likeliest = self.decoder.read(memory, start)[:, tokens].argmax(dim=-1, keepdim=True)
        memory.forget()
        return tokens[likeliest]
