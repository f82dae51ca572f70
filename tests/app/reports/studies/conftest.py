from __future__ import annotations

from typing import Any

import pytest

from app.reports.studies.table import study_table
from tests.app.reports.studies import synthetic


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """Return the table of a study that ships trial 1; not to be changed."""
    return study_table(synthetic.facts(), synthetic.on_development(), synthetic.on_test())
