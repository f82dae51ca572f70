"""Follows a merge over its events, to the end of it and of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.client import Client
from cli.progress import ProgressReport


def follow(client: Client, merge: Mapping[str, Any], report: ProgressReport) -> dict[str, Any]:
    """Report every event of a merge; return the merge as it is when its events have ended."""
    if because := merge.get("queued_because"):
        report.say(f"it has to wait: {because}")
    for kind, data in client.events(f"/merges/{merge['id']}/events"):
        progress = data if kind == "progress" else data.get("progress")
        if progress:
            report.advance(progress["done"], progress["total"], progress["unit"])
        elif text := _line(kind, data):
            report.say(text)
    final: dict[str, Any] = client.get(f"/merges/{merge['id']}")
    return final


def _line(kind: str, data: Mapping[str, Any]) -> str | None:
    """Return what an event says to a person, or None for those that say nothing new."""
    if kind in {"status", "phase"}:
        return str(data.get(kind, ""))
    if kind == "warning":
        return f"warning: {data['message']}"
    if kind == "evaluation":
        return f"evaluation {data['status']}" if "status" in data else None
    return None
