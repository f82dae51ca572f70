from __future__ import annotations

import subprocess
import sys
import time

import pytest


def test_help_names_every_command_and_loads_nothing_heavy():
    script = (
        "import sys; sys.argv = ['afluente', '--help']\n"
        "from cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pydantic', 'sqlalchemy', 'fastapi', 'celery'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 3  # 0.15 s on an idle machine
    commands = "up api worker merge evaluate methods submit wer settings keys"
    for command in commands.split():
        assert f"\n  {command} " in done.stdout


def test_an_unknown_method_is_one_line_on_stderr(afluente):
    done = afluente("methods", "bosted_tsv_m")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert 'Did you mean "boosted_tsv_m"?' in done.stderr


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_wherever_it_stands(afluente, place):
    words = ["methods", "nonsense"]
    done = afluente(*(["--debug", *words] if place == "before" else [*words, "--debug"]))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_setting_that_cannot_be_read_is_named_as_one_sets_it(afluente):
    done = afluente("worker", AFLUENTE_LEASE_SECONDS="-3", AFLUENTE_THREADS="many")
    assert done.returncode == 1
    assert "AFLUENTE_LEASE_SECONDS" in done.stderr
    assert "AFLUENTE_THREADS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_without_a_queue_says_what_to_do(afluente):
    done = afluente("worker")
    assert done.returncode == 1
    assert "AFLUENTE_BROKER_URL" in done.stderr
    assert "afluente up" in done.stderr


@pytest.mark.parametrize("command", ["api", "up"])
def test_an_open_address_without_an_api_key_is_refused(afluente, command):
    done = afluente(command, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    assert "afluente keys create" in done.stderr


def test_settings_lists_every_variable(afluente):
    from app.contract.settings import Settings

    done = afluente("settings")
    for name in Settings.model_fields:
        assert f"AFLUENTE_{name.upper()} " in done.stdout
