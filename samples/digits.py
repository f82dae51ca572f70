"""The texts: strings of Portuguese digit words, with a fixed split for training and evaluation."""

from __future__ import annotations

import hashlib
import random

WORDS = ("zero", "um", "dois", "três", "quatro", "cinco", "seis", "sete", "oito", "nove")
SHORTEST, LONGEST = 2, 4


def is_held_out(text: str) -> bool:
    """Return whether `text` is for evaluation (a fifth of all strings, by their hash)."""
    return hashlib.sha256(text.encode()).digest()[0] % 5 == 0


def draw_text(rng: random.Random, *, held_out: bool) -> str:
    """Return 2 to 4 digit words, from the evaluation strings or from the training ones."""
    while True:
        length = rng.randint(SHORTEST, LONGEST)
        text = " ".join(rng.choice(WORDS) for _ in range(length))
        if is_held_out(text) == held_out:
            return text


def draw_distinct_texts(rng: random.Random, count: int) -> list[str]:
    """Return `count` different evaluation strings."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[draw_text(rng, held_out=True)] = None
    return list(texts)
