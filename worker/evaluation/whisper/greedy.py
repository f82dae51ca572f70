"""Greedy search over a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.evaluation.whisper.decoder import Decoder
from worker.evaluation.whisper.kv_cache import KeyValueCache
from worker.evaluation.whisper.rules import Rules


def search_greedily(
    decoder: Decoder, cache: KeyValueCache, prompts: Tensor, rules: Rules
) -> list[list[int]]:
    """Return each utterance's tokens after its prompt, without the end token.

    `prompts` is (slots, length). Finished utterances are removed from the cache.
    """
    hypotheses: list[list[int]] = [[] for _ in prompts]
    owners = list(range(len(prompts)))
    logits = decoder.read(cache, prompts)
    for position in range(prompts.shape[1], rules.max_length):
        first = position == prompts.shape[1]
        tokens = torch.argmax(rules.suppress(logits, first=first), dim=-1)
        running = []
        for slot, token in enumerate(tokens.tolist()):
            if token != rules.end:
                hypotheses[owners[slot]].append(token)
                running.append(slot)
        if not running or position + 1 == rules.max_length:
            break
        if len(running) < len(owners):
            order = cache.select(running)
            owners, tokens = [owners[slot] for slot in order], tokens[order]
        logits = decoder.step(cache, tokens[:, None], position, None)
    return hypotheses
