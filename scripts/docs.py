"""Generates docs/settings.md and docs/methods.md."""

from __future__ import annotations

from pathlib import Path

from cli.reference import methods_page, settings_page

_DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write docs/settings.md and docs/methods.md."""
    (_DOCS / "settings.md").write_text(settings_page())
    (_DOCS / "methods.md").write_text(methods_page())


if __name__ == "__main__":
    main()
