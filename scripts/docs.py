"""Generates docs/settings.md, docs/methods.md, and tables in other pages."""

from __future__ import annotations

from pathlib import Path

from cli.reference import (
    methods_page,
    settings_page,
    with_checkpoint_forms,
    with_families,
    with_forms,
)

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_TABLES = {
    "evaluation.md": with_forms,
    "architectures.md": with_families,
    "checkpoints.md": with_checkpoint_forms,
}


def main() -> None:
    """Write the pages and tables."""
    (_DOCS / "settings.md").write_text(settings_page())
    (_DOCS / "methods.md").write_text(methods_page())
    for name, updated in _TABLES.items():
        page = _DOCS / name
        page.write_text(updated(page.read_text()))


if __name__ == "__main__":
    main()
