"""What CTranslate2's Whisper cannot be told.

Its converter takes weights; the activation and the rules of the search are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.contract.problems import shown
from app.sources.architectures.whisper import generation

_OBEYED = frozenset(
    {
        "max_new_tokens",
        "suppress_tokens",
        "begin_suppress_tokens",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "max_initial_timestamp_index",
        "length_penalty",
    }
)
# Any width above 1 gives all settings of a search.
_BEAMS, _PROMPT = 5, 4


def obstacle(
    config: Mapping[str, Any], document: Mapping[str, Any] | None, label: str
) -> str | None:
    """Return the first setting of a checkpoint that CTranslate2 does not obey; None if none.

    `document` is its generation_config.json.
    """
    activation = config.get("activation_function", "gelu")
    if activation != "gelu":
        return (
            f"{label}: config.json says activation_function {shown(activation)}; CTranslate2's "
            "Whisper computes gelu"
        )
    settings = generation.settings_of(document, config)
    own = generation.constraints(
        settings, config, num_beams=_BEAMS, prompt=_PROMPT, timestamps=True
    )
    if ignored := sorted(own.keys() - _OBEYED):
        file = "config.json" if document is None else generation.FILE
        return (
            f"{label}: {file} sets {ignored[0]}, which CTranslate2 does not obey; remove it from "
            "the file, or do without CTranslate2"
        )
    return None
