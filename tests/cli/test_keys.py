from __future__ import annotations


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(afluente):
    made = afluente("keys", "create", "ci", "--scope", "read", "--scope", "write")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("afl_")
    listed = afluente("keys", "list").stdout
    assert secret not in listed
    key_id, state, _, scopes, name = listed.split()
    assert (state, scopes, name) == ("active", "read,write", "ci")
    revoked = afluente("keys", "revoke", key_id)
    assert revoked.returncode == 0
    assert "refuses all calls until you create another" in revoked.stderr
    assert " revoked " in afluente("keys", "list").stdout
    again = afluente("keys", "revoke", key_id)
    assert again.returncode == 1
    assert "keys list" in again.stderr


def test_an_unknown_scope_is_refused_with_the_known_ones(afluente):
    done = afluente("keys", "create", "x", "--scope", "root")
    assert done.returncode == 1
    assert "read, write, admin" in done.stderr
