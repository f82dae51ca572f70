"""Greedy search over a batch: the likeliest token, again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.evaluation.whisper.decoder import Decoder
from worker.evaluation.whisper.memory import Memory
from worker.evaluation.whisper.rules import Rules


def search_greedily(
    decoder: Decoder, memory: Memory, prompts: Tensor, rules: Rules
) -> list[list[int]]:
    """Return each utterance's tokens after its prompt, without the end token.

    `prompts` is (slots, length). Utterances that are finished leave the memory.
    """
    said: list[list[int]] = [[] for _ in prompts]
    owners = list(range(len(prompts)))
    logits = decoder.read(memory, prompts)
    for position in range(prompts.shape[1], rules.max_length):
        first = position == prompts.shape[1]
        tokens = torch.argmax(rules.silence(logits, first=first), dim=-1)
        going = []
        for slot, token in enumerate(tokens.tolist()):
            if token != rules.end:
                said[owners[slot]].append(token)
                going.append(slot)
        if not going or position + 1 == rules.max_length:
            break
        if len(going) < len(owners):
            order = memory.keep(going)
            owners, tokens = [owners[slot] for slot in order], tokens[order]
        logits = decoder.step(memory, tokens[:, None], position, None)
    return said
