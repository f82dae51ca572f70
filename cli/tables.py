"""The table of a merge's error rates, as commands print it."""

from __future__ import annotations

from collections.abc import Mapping
from shutil import get_terminal_size
from typing import Any

from app.contract.errors import NotFoundError
from app.contract.identifiers import MERGE, is_id
from app.reports.names import names_of
from app.reports.rendering import render_table
from cli.client import Client


def wer_table(client: Client, document: Mapping[str, Any]) -> str:
    """Return a `/wer` document as a table in which merges have the names that people know."""
    systems = [document["merge_id"], *document["systems"]]
    merges = {}
    for system in systems:
        if is_id(system, MERGE):
            try:
                merges[system] = client.get(f"/merges/{system}")
            except NotFoundError:  # deleted: its results are kept, and its id
                continue
    others = {system: system for system in systems if system not in merges}
    names = names_of(merges, others)
    return render_table(document, names=names, width=get_terminal_size().columns)
