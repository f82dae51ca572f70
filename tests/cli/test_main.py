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


@pytest.mark.parametrize("words", [("recipe.yaml", "--dry-run"), ("std_" + "0" * 26,)])
def test_a_study_that_would_ignore_its_output_folder_is_refused(afluente, tmp_path, words):
    done = afluente("study", *words, "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "--output" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_wherever_it_stands(afluente, place):
    words = ["methods", "nonsense"]
    done = afluente(*(["--debug", *words] if place == "before" else [*words, "--debug"]))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_invalid_setting_is_named_by_its_variable(afluente):
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


def test_kubernetes_service_variables_are_ignored(afluente, tmp_path):
    service = {
        "AFLUENTE_SERVICE_HOST": "10.0.0.1",
        "AFLUENTE_SERVICE_PORT": "8000",
        "AFLUENTE_PORT": "tcp://10.0.0.1:8000",
        "AFLUENTE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "AFLUENTE_PORT_8000_TCP_PROTO": "tcp",
        "AFLUENTE_PORT_8000_TCP_PORT": "8000",
        "AFLUENTE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    done = afluente("keys", "list", "--data-dir", str(tmp_path), **service)
    assert (done.returncode, done.stderr) == (0, "")
    done = afluente("worker", **service)
    assert "AFLUENTE_BROKER_URL" in done.stderr
    assert "AFLUENTE_PORT" not in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [{"AFLUENTE_PORT": "http"}, {"AFLUENTE_LEASE_SECONDS": "inf"}, {"AFLUENTE_DEVICE": ""}],
)
def test_a_command_ignores_settings_it_does_not_need(afluente, tmp_path, wrong):
    done = afluente("keys", "list", "--data-dir", str(tmp_path), **wrong)
    assert done.returncode == 0
    for variable, value in wrong.items():
        assert (f"{variable} is ignored" in done.stderr) == bool(value)


@pytest.mark.parametrize(
    ("variable", "value", "command"),
    [
        ("AFLUENTE_DATABASE_URL", "mysql://root:hidden@host/x", ["keys", "list"]),
        ("AFLUENTE_DATABASE_URL", "hidden", ["keys", "list"]),
        ("AFLUENTE_DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/x", ["keys", "list"]),
        ("AFLUENTE_BROKER_URL", "amqp://u:hidden@host//", ["worker"]),
        ("AFLUENTE_RENEW_SECONDS", "60", ["worker"]),
        ("AFLUENTE_SWEEP_SECONDS", "nan", ["worker"]),
    ],
)
def test_a_bad_setting_is_one_line_with_its_name_and_without_its_secret(
    afluente, tmp_path, variable, value, command
):
    done = afluente(*command, "--data-dir", str(tmp_path), **{variable: value})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "hidden" not in done.stderr
    assert variable in done.stderr or "The database cannot be reached" in done.stderr
