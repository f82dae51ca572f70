"""Follows a merge's events until it and its evaluation have ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.client import Client
from cli.progress import ProgressReport


def follow(client: Client, merge: Mapping[str, Any], report: ProgressReport) -> dict[str, Any]:
    """Report every event of a merge; return the merge after its last event."""
    if because := merge.get("queued_because"):
        report.write(f"the merge has to wait: {because}")
    for kind, data in client.events(f"/merges/{merge['id']}/events"):
        progress = data if kind == "progress" else data.get("progress")
        if progress:
            report.advance(progress["done"], progress["total"], progress["unit"])
        elif text := _line(kind, data):
            report.write(text)
    final: dict[str, Any] = client.get(f"/merges/{merge['id']}")
    return final


def _line(kind: str, data: Mapping[str, Any]) -> str | None:
    """Return an event as a line for the user, or None if it has no news."""
    if kind in {"status", "phase"}:
        return str(data.get(kind, ""))
    if kind == "warning":
        return f"warning: {data['message']}"
    if kind == "evaluation":
        return f"evaluation {data['status']}" if "status" in data else None
    return None
