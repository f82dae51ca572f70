"""Asks the service's own `/readyz` whether everything behind it is there."""

from __future__ import annotations

import http.client
import json

# The service answers within three, whatever it waits for.
_TIMEOUT_SECONDS = 5.0


def missing(host: str, port: int) -> str | None:
    """Return None when the service is ready, else what it lacks."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return "the API does not answer yet"
    finally:
        connection.close()
    if answer.status == http.client.OK:
        return None
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the API says {answer.status}"
