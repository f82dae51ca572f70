"""`afluente wer` against a running API: its output and exit status."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import httpx2
import pytest

from app.contract.errors import InvalidRequestError
from app.contract.gate import GateSpec
from app.contract.identifiers import MERGE, is_id
from app.services.backend import Backend
from app.storage import evaluations
from app.storage.database import writing
from app.storage.leases import JobKind
from cli.client import Client
from cli.gates import requested, verdict
from cli.tables import wer_table
from tests.app.routes.conftest import (
    empty_database,
    end,
    make_settings,
    models,
    recipe,
    serve,
    succeed,
    take,
)
from tests.app.routes.test_evaluations import PERFECT, WORSE, result, spec, store
from tests.app.routes.test_gate import finish

__all__ = ["empty_database", "make_settings", "models", "recipe", "spec"]


@pytest.fixture
def served(make_settings, recipe, spec):
    """A merge of which a third of the words is wrong and none of the base's; (call, ID)."""
    with serve(make_settings()) as (url, backend):
        merge_id = measure(url, backend, recipe, spec | {"gate": {"max_wer": 0.5}})
        yield url, merge_id


def measure(url: str, backend: Backend, recipe: dict, spec: dict) -> str:
    with httpx2.Client(base_url=url) as client:
        merge_id = client.post("/merges", json=recipe).json()["id"]
        succeed(backend.engine, backend.store, merge_id)
        asked = client.post(f"/merges/{merge_id}/evaluations", json=spec).json()
        finish(backend, merge_id, asked, {"merge": result(WORSE), "base": result(PERFECT)})
    return merge_id


def test_the_table_has_the_merges_names(afluente, make_settings, recipe, spec):
    with serve(make_settings()) as (url, backend):
        first = measure(url, backend, recipe | {"name": "first"}, spec)
        named = afluente("wer", first, "--url", url).stdout
        unnamed = measure(url, backend, recipe | {"name": None}, spec)
        ended = afluente("wer", unnamed, "--url", url).stdout
    assert "\nfirst " in named
    assert first not in named
    assert f"\ntask_arithmetic λ=0.4 …{unnamed[-4:]} " in ended


def test_a_deleted_merge_is_shown_by_its_id(make_settings, recipe, spec):
    gone = f"mrg_{'0' * 26}"
    with serve(make_settings()) as (url, backend), Client(url) as client:
        merge_id = measure(url, backend, recipe | {"name": "still here"}, spec)
        document = client.get(f"/merges/{merge_id}/wer")
        document["systems"][gone] = document["systems"]["base"]
        table = wer_table(client, document, {})
    assert is_id(gone, MERGE)
    assert f"\n{gone} " in table
    assert "\nstill here " in table


def test_the_gate_is_the_exit_status(afluente, served, tmp_path: Path):
    url, merge_id = served

    def wer(*options: str):
        return afluente("wer", merge_id, "--url", url, *options)

    passed = wer("--max-wer", "0.1", "--max-wer", "set=0.34", "--gate")
    assert (passed.returncode, passed.stderr) == (0, "gate: passed\n")
    assert "33.33" in passed.stdout
    failed = wer("--max-wer", "set=0.3", "--max-regression", "0.01")
    assert failed.returncode == 3
    assert failed.stderr.splitlines() == [
        "gate: set: WER 33.33 % is 3.33 points above the 30.00 % allowed",
        "gate: set: WER 33.33 % is 33.33 points above base's 0.00 %, 32.33 more than the 1.00 "
        "allowed",
        "gate: not passed",
    ]
    assert failed.stdout == passed.stdout
    kept = wer("--max-loops", "0", "--max-words-on-silence", "set=0")
    assert (kept.returncode, kept.stderr) == (0, "gate: passed\n")
    assert "not a rate" in wer("--max-loops", "few").stderr
    unknown = wer("--max-wer", "sett=0.1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert 'no set "sett". Did you mean "set"? Sets: set.' in unknown.stderr
    assert "base" in wer("--max-regression", "0", "--against", "bass").stderr
    percent = wer("--max-wer", "10")
    assert percent.returncode == 1
    assert "less than or equal to 1" in percent.stderr
    page = tmp_path / "report.html"
    assert wer("--format", "csv", "--output", str(page)).stdout == ""
    assert page.read_text().startswith("system,row,name")
    assert wer("--format", "html", "--output", str(page)).returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_merge_that_was_never_evaluated_does_not_pass(afluente, make_settings, recipe):
    with serve(make_settings()) as (url, _):
        merge_id = httpx2.post(f"{url}/merges", json=recipe).json()["id"]
        done = afluente("wer", merge_id, "--url", url, "--max-wer", "1")
    assert done.returncode == 3
    assert "never evaluated" in done.stderr


@pytest.mark.parametrize(
    ("end_of_the_newest", "said"),
    [
        ("partial", "set: its newest evaluation ({}) is partial; the rate is from an earlier one"),
        ("failed", "set: its newest evaluation ({}) failed"),
        ("queued", "set: its newest evaluation ({}) has not ended"),
        ("running", "set: its newest evaluation ({}) has not ended"),
    ],
)
def test_an_older_result_never_passes_for_the_newest(
    afluente, make_settings, recipe, spec, end_of_the_newest: str, said: str
):
    with serve(make_settings()) as (url, backend), httpx2.Client(base_url=url) as client:
        merge_id = measure(url, backend, recipe, spec)

        def again(asked: dict) -> str:
            path = f"/merges/{merge_id}/evaluations"
            return str(client.post(path, json=asked).json()["id"])

        newest = again(spec)
        if end_of_the_newest != "queued":
            lease = take(backend.engine, newest, JobKind.EVALUATION)
            if end_of_the_newest == "partial":
                store(backend, lease, "merge", 0, result(PERFECT[:3], skipped=1))
            if end_of_the_newest != "running":
                end(backend.engine, lease, end_of_the_newest)
        # Of another set: what came last of all is not what counts.
        other = [{**spec["datasets"][0], "name": "other"}]
        last = again(spec | {"datasets": other})
        lease = take(backend.engine, last, JobKind.EVALUATION)
        document, utterances = result(PERFECT)
        with writing(backend.engine) as connection:
            evaluations.save_result(
                connection, last, system="merge", dataset="other", position=0,
                result=document | {"name": "other"}, utterances=utterances,
            )  # fmt: skip
        end(backend.engine, lease, "succeeded")
        done = afluente("wer", merge_id, "--url", url, "--max-wer", "set=0.5")
        assert done.returncode == 3, done.stderr
        assert done.stderr.splitlines() == [
            f"gate: {said.format(newest)}",
            "gate: not passed",
        ]
        assert afluente("wer", merge_id, "--url", url, "--max-wer", "other=0.5").returncode == 0
        first = client.get(f"/merges/{merge_id}/evaluations").json()["data"][-1]["id"]
        alone = ("--evaluation", first, "--max-wer", "set=0.5")
        assert afluente("wer", merge_id, "--url", url, *alone).returncode == 0


@pytest.mark.parametrize("missing", ["sets", "gate"])
def test_a_service_that_is_older_than_the_command_line_is_named_as_such(served, missing: str):
    url, merge_id = served
    document = httpx2.get(f"{url}/merges/{merge_id}/wer").json()
    del document["evaluation"][missing]
    ask = partial(verdict, gate=GateSpec(max_wer=0.5)) if missing == "sets" else requested
    with pytest.raises(InvalidRequestError) as caught:
        ask(document)
    assert f"no `evaluation.{missing}`" in caught.value.message
    assert "Upgrade the service" in caught.value.message


def test_utterances_are_written_for_other_tools(afluente, served, tmp_path: Path):
    url, merge_id = served
    file = tmp_path / "base.stm"
    afluente(
        *("utterances", merge_id, "--url", url, "--format", "stm", "--side", "reference"),
        *("--system", "base", "--output", str(file)),
    )
    assert file.read_text().splitlines()[0] == "0 1 spk0 0.000 2.000 o rio corre"
    lines = afluente("utterances", merge_id, "--url", url, "--format", "nemo").stdout.splitlines()
    assert [json.loads(line)["pred_text"] for line in lines] == list(WORSE)
