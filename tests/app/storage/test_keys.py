from __future__ import annotations

from sqlalchemy import Engine, select

from app.storage import keys
from app.storage.database import reading
from app.storage.tables import api_keys


def test_a_key_opens_until_it_is_revoked(engine: Engine):
    assert not keys.any_active(engine)
    key_id, secret = keys.create(engine, "ci", ["read"])
    found = keys.find(engine, secret)
    assert found is not None
    assert (found.id, found.name) == (key_id, "ci")
    assert keys.any_active(engine)
    assert keys.revoke(engine, key_id)
    assert not keys.revoke(engine, key_id)
    assert keys.find(engine, secret) is None
    assert not keys.any_active(engine)


def test_the_secret_is_nowhere_in_the_database(engine: Engine):
    _, secret = keys.create(engine, "ci", ["read"])
    with reading(engine) as connection:
        assert secret not in str(connection.execute(select(api_keys)).all())
    assert "digest" not in keys.every(engine)[0]
    assert keys.find(engine, secret[:-1]) is None


def test_scopes_imply_each_other_downwards(engine: Engine):
    allowed = {}
    for scope in keys.SCOPES:
        found = keys.find(engine, keys.create(engine, scope, [scope])[1])
        assert found is not None
        allowed[scope] = {other for other in ("read", "write") if found.allows(other)}
    assert allowed == {"read": {"read"}, "write": {"read", "write"}, "admin": {"read", "write"}}
