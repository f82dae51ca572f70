"""Maps language codes of ISO 639 and BCP 47 to Whisper's."""

from __future__ import annotations

import re
from functools import lru_cache

_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr
ht hu hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc
pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue
zh
"""
WHISPER_LANGUAGES = frozenset(_CODES.split())
"""The codes in Whisper's language tokens; yue exists only since large-v3."""

_CODE = re.compile(r"[a-z]{2,3}")
# Whisper uses the macrolanguage's code, the older code, or Javanese's code from before 2001.
_WHISPER_CODES = {"nb": "no", "fil": "tl", "jv": "jw"}


def language_code(value: object) -> object:
    """Return Whisper's code for a tag: `pt` for `pt-PT` and `por`, `no` for `nb`, `zh` for `cmn`.

    An unknown code is returned in lower case without region, since checkpoints may have language
    tokens of their own. A value that is not a string is returned unchanged. Raises ValueError for
    a language's name.
    """
    if not isinstance(value, str):
        return value
    code = re.split(r"[-_]", value.strip().lower()[:100], maxsplit=1)[0]
    if not _CODE.fullmatch(code):
        raise ValueError(f'"{value[:100]}" is not a language code such as "pt" for Portuguese')
    return _whisper_code(code)


@lru_cache(maxsize=4096)
def _whisper_code(code: str) -> str:
    if code in WHISPER_LANGUAGES:
        return code
    import langcodes  # slow to import

    try:
        standard = langcodes.standardize_tag(code, macro=True).split("-")[0]
    except ValueError:
        return code
    return _WHISPER_CODES.get(standard, standard)
