"""The architectures that are known, and which one a config.json is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.sources.architectures.architecture import Architecture
from app.sources.architectures.whisper.family import Whisper

KNOWN: tuple[Architecture, ...] = (Whisper(),)
ANY = Architecture()


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the first known architecture that recognises a config.json, else ANY."""
    return next((known for known in KNOWN if known.recognises(config)), ANY)


def undecodable(summary: Mapping[str, str | None]) -> str | None:
    """Return why checkpoints of this architecture cannot be evaluated, None if they can.

    `summary` is that of Architecture.summary.
    """
    if summary["task"] is not None:
        return None
    kind, known = summary["model_class"] or summary["model_type"], [k.name for k in KNOWN if k.task]
    return (
        f"{kind} checkpoints can be merged but not evaluated: there is no decoder for them, only "
        f"for {', '.join(known)}. Leave the evaluation out."
    )
