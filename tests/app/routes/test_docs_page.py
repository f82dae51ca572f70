"""The API's docs page works without internet access."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient

from app.contract.settings import Settings
from app.main import create_app


def test_the_docs_page_loads_nothing_from_elsewhere() -> None:
    client = TestClient(create_app(Settings()), base_url="http://localhost")
    page = client.get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 2
    for address in addresses:
        assert address.startswith("/")
        assert client.get(address).status_code == 200
