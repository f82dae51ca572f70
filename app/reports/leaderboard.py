"""The Open ASR Leaderboard's rules for languages other than English (its multilingual track)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from num2words import num2words

from app.reports.english import without_brackets

# num2words has no names for longer numbers; the leaderboard does not change them either.
_MOST_DIGITS = 100


def leaderboard_other(language: str | None) -> Callable[[str], str]:
    """Return the leaderboard's MultilingualNormalizer for a language, with digits as words.

    Follows `normalizer/data_utils.py` and `normalizer.py` of huggingface/open_asr_leaderboard
    (d1e99b2; Apache-2.0), which keep diacritics.
    """

    def normalize(text: str) -> str:
        text = unicodedata.normalize("NFKC", without_brackets(text.lower()))
        text = "".join(" " if unicodedata.category(c)[0] in "MSP" else c for c in text).lower()
        text = " ".join(re.sub(r"[^\w\s]", "", text).split())
        text = re.sub(r"(\d) (\d{3})\b", r"\1\2", text)
        return re.sub(r"\d+", lambda found: _spelled(found[0], language), text)

    return normalize


def _spelled(digits: str, language: str | None) -> str:
    if len(digits) > _MOST_DIGITS:
        return digits
    try:
        return str(num2words(int(digits), lang=language))
    except (NotImplementedError, OverflowError, ValueError, IndexError, KeyError, TypeError):
        return digits
