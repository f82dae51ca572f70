"""Our Whisper decoder: finds the hypotheses of transformers' `generate` in less time."""

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
from worker.evaluation.whisper.kv_cache import KeyValueCache
from worker.evaluation.whisper.rules import rules_of


class Transcriber:
    """A loaded Whisper and the settings of its search."""

    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        """Share the weights of a transformers model on a CPU; `unsupported` must return None."""
        self.config = model.config
        self.settings = settings
        self.encoder = Encoder(model.model.encoder)
        self.decoder = Decoder(model)

    def transcribe(
        self, features: Tensor, language: str | None, task: str | None
    ) -> tuple[list[list[int] | None], list[int]]:
        """Return the tokens of each utterance, without prompt and end token, and its language's.

        `features` is (utterances, bins, frames), one window each. If `language` is None, a
        multilingual model detects it; other models have no languages. The tokens are None for an
        utterance that the model divided by timestamps, which `generate` has to decode.
        """
        cache = self._encode(features)
        prompts = self._prompts(cache, language, task)
        rules = rules_of(self.settings, self.config, prompts.shape[1])
        search = search_greedily if rules.num_beams == 1 else search_beams
        hypotheses = search(self.decoder, cache, prompts, rules)
        spoken = prompts[:, 1].tolist() if language or self.settings.get("lang_to_id") else []
        return [None if self._is_divided(tokens) else tokens for tokens in hypotheses], spoken

    def _is_divided(self, tokens: list[int]) -> bool:
        plain = self.settings.get("no_timestamps_token_id")
        return plain is not None and any(first > plain < then for first, then in pairwise(tokens))

    def _encode(self, features: Tensor) -> KeyValueCache:
        cache = self.decoder.new_cache(len(features), self.config.max_source_positions)

        def encode(slot: int) -> None:
            with torch.inference_mode():
                self.decoder.add(cache, slot, self.encoder.encode(features[slot]))

        # One utterance per thread scales better than each product over all threads.
        threads = torch.get_num_threads()
        at_once = min(threads, len(features))
        each = (threads // at_once,)
        try:
            with ThreadPoolExecutor(at_once, "encode", torch.set_num_threads, each) as pool:
                list(pool.map(encode, range(len(features))))
        finally:
            # The number of threads is per thread in OpenMP, but global in MKL.
            torch.set_num_threads(threads)
        return cache

    def _prompts(self, cache: KeyValueCache, language: str | None, task: str | None) -> Tensor:
        start = torch.full((cache.slots, 1), self.settings["decoder_start_token_id"])
        columns = [start]
        if language or self.settings.get("lang_to_id"):
            columns.append(self._languages(cache, start, language))
        if task or language:
            columns.append(
                start.new_full(start.shape, self.settings["task_to_id"][task or "transcribe"])
            )
        if self.settings.get("no_timestamps_token_id") is not None:
            columns.append(start.new_full(start.shape, self.settings["no_timestamps_token_id"]))
        return torch.cat(columns, dim=1)

    def _languages(self, cache: KeyValueCache, start: Tensor, language: str | None) -> Tensor:
        known = self.settings["lang_to_id"]
        if language:
            return start.new_full(start.shape, known[f"<|{language}|>"])
        tokens = torch.tensor(sorted(known.values()))
        likeliest = self.decoder.read(cache, start)[:, tokens].argmax(dim=-1, keepdim=True)
        cache.clear_past()
        return tokens[likeliest]
