"""The slowest tests first, so that no worker is left alone with them at the end."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with those that run a whole service."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/e2e/"))
