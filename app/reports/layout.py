"""What HTML pages share: templates, style sheet, security policy, the form of figures."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """Return a page, or a part of one, from a file of `templates/`."""
    return (
        _environment()
        .get_template(template)
        .render(**values, style=Markup(_style()), policy=content_security_policy())
    )


def content_security_policy() -> str:
    """Return the page's policy: its own style sheet, and audio of its own service; no script."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; media-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def percent(rate: float | None) -> str:
    """Return a fraction in percent with two digits, or a dash."""
    return "–" if rate is None else f"{100 * rate:.2f}".replace("-", "−")


def chance(p: float | None) -> str:
    """Return a p value as papers print it."""
    if p is None:
        return "p: –"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.reports"),
        autoescape=True,  # names, transcripts and reasons are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "chance": chance}
    return environment


@lru_cache(maxsize=1)
def _style() -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), "wer.css")[0]
