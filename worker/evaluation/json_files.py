"""Reads the JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.contract.errors import InvalidCheckpointError

_MAX_BYTES = 64 * 2**20


def read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    """Return a JSON object from the folder; InvalidCheckpointError if there is none."""
    document = read_optional(checkpoint, name)
    if document is None:
        raise InvalidCheckpointError(f"{checkpoint.name} has no {name}.")
    return document


def read_optional(checkpoint: Path, name: str) -> dict[str, Any] | None:
    """Return a JSON object from the folder, or None if the file does not exist."""
    try:
        with (checkpoint / name).open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise InvalidCheckpointError(
                f"{checkpoint.name}/{name} has more than {_MAX_BYTES:,} bytes."
            )
        document = json.loads(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidCheckpointError(f"{checkpoint.name}/{name}: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidCheckpointError(f"{checkpoint.name}/{name} is not a JSON object.")
    return document
