"""The formats of other runtimes: a merge is also written in them, and measured in them."""

from __future__ import annotations

from typing import Literal

Format = Literal["ctranslate2_float32", "ctranslate2_float16", "ctranslate2_int8"]

Backend = Literal["default", Format]
"""What decodes: transformers or an equal search of our own, or the runtime of a format."""

CTRANSLATE2 = "ctranslate2"


def quantization_of(name: Format) -> str:
    """Return how a format stores weights, as its converter says it."""
    return name.removeprefix(f"{CTRANSLATE2}_")
