"""Asks the service's `/readyz` whether it is ready."""

from __future__ import annotations

import http.client
import json

# The service responds within three seconds, even if a check hangs.
_TIMEOUT_SECONDS = 5.0


def missing(host: str, port: int) -> str | None:
    """Return why the service is not ready; None if it is."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return "the API does not respond yet"
    finally:
        connection.close()
    if answer.status == http.client.OK:
        return None
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the API responds with status {answer.status}"
