"""The table of a merge's error rates for commands."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from shutil import get_terminal_size
from typing import Any

from app.contract.errors import AfluenteError
from app.contract.identifiers import MERGE, is_id
from app.reports.names import names_of
from app.reports.rendering import render_table
from cli.client import Client


def wer_table(
    client: Client, document: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return a `/wer` document as a table with the merges' display names.

    `known` are merges by id that need not be requested.
    """
    systems = [document["merge_id"], *document["systems"]]
    merges = dict(known)
    for system in systems:
        if is_id(system, MERGE) and system not in merges:
            # If it was deleted, or the service is gone, its id is shown.
            with suppress(AfluenteError):
                merges[system] = client.get(f"/merges/{system}")
    others = {system: system for system in systems if system not in merges}
    names = names_of(merges, others)
    return render_table(document, names=names, width=get_terminal_size().columns)
