"""Generates docs/settings.md and docs/methods.md, and the table in docs/evaluation.md."""

from __future__ import annotations

from pathlib import Path

from cli.reference import methods_page, settings_page, with_forms

_DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write docs/settings.md, docs/methods.md and docs/evaluation.md."""
    (_DOCS / "settings.md").write_text(settings_page())
    (_DOCS / "methods.md").write_text(methods_page())
    evaluation = _DOCS / "evaluation.md"
    evaluation.write_text(with_forms(evaluation.read_text()))


if __name__ == "__main__":
    main()
