"""Access control: API keys and their scopes, and the rules without keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from sqlalchemy import Engine

from app.contract.errors import ForbiddenError, UnauthorizedError
from app.contract.hosts import is_loopback_name
from app.contract.settings import Settings
from app.storage import keys
from app.storage.keys import ApiKey

_REMEMBER_SECONDS = 1.0


class AccessControl:
    """Identifies callers; caches for a second whether keys are required."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._lock = threading.Lock()
        self._needed = False
        self._checked_at = -_REMEMBER_SECONDS

    def identify(
        self, secret: str | None, scope: str, names: Iterable[str | None]
    ) -> ApiKey | None:
        """Return the caller's key, or None if keys are not required.

        `names` are all hosts and addresses that the request was addressed to or came through;
        without a key, each must be this machine. Raises UnauthorizedError or ForbiddenError.
        """
        if secret is not None:
            return self._authorize(secret, scope)
        if self._key_needed():
            raise UnauthorizedError(
                "Send an API key: `Authorization: Bearer afl_...`; the operator creates one with "
                "`afluente keys create`."
            )
        for name in names:
            # Against DNS rebinding: a web page can make its own name resolve to 127.0.0.1, and
            # only the name tells its requests from the user's.
            if not is_loopback_name(name):
                raise ForbiddenError(
                    f'Without API keys the service only answers to localhost, not to "{name}". '
                    "Create a key with `afluente keys create`, and send it."
                )
        return None

    def _authorize(self, secret: str, scope: str) -> ApiKey:
        key = keys.find(self._engine, secret)
        if key is None:
            raise UnauthorizedError("This API key is unknown or has been revoked.")
        if not key.allows(scope):
            raise ForbiddenError(
                f'The API key "{key.name}" lacks the scope "{scope}" '
                f"(it has: {', '.join(sorted(key.scopes)) or 'none'})."
            )
        return key

    def _key_needed(self) -> bool:
        # Once a key exists, calls need one for good, even after the last is revoked. A service
        # beyond loopback was started because a key existed.
        if self._settings.require_api_key or not is_loopback_name(self._settings.host):
            return True
        with self._lock:
            if time.monotonic() - self._checked_at >= _REMEMBER_SECONDS:
                self._needed = keys.any_ever(self._engine)
                self._checked_at = time.monotonic()
            return self._needed


def refuse_open_exposure(settings: Settings, engine: Engine) -> None:
    """Raise ForbiddenError if the API would listen beyond this machine without an API key."""
    if is_loopback_name(settings.host) or keys.any_active(engine):
        return
    raise ForbiddenError(
        f"The API would listen on {settings.host}, open to anyone who can reach it. Create an API "
        "key first (`afluente keys create NAME`), or listen on 127.0.0.1."
    )
