from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.contract.evaluation import EvaluationSpec
from app.services.backend import Backend
from app.services.gates import decide
from app.storage.leases import JobKind
from tests.app.routes.conftest import end, succeed, take
from tests.app.routes.test_create_merge import refusal
from tests.app.routes.test_evaluations import PERFECT, WORSE, result, spec, store

__all__ = ["spec"]


def finish(backend: Backend, merge_id: str, evaluation: dict[str, Any], systems: Any) -> None:
    """Do what a worker does: store results, decide, end."""
    lease = take(backend.engine, evaluation["id"], JobKind.EVALUATION)
    for position, (system, stored) in enumerate(systems.items()):
        store(backend, lease, system, position, stored)
    asked = EvaluationSpec.model_validate(evaluation["spec"])
    verdict = decide(backend.engine, merge_id, evaluation["id"], asked, "succeeded")
    end(backend.engine, lease, "succeeded", verdict=verdict)


def test_the_verdict_is_open_until_the_evaluation_has_ended(
    client: TestClient, backend: Backend, recipe: dict[str, Any], spec: dict[str, Any]
):
    gate = {"max_wer": {"set": 0.1}, "max_regression": 0.01}
    body = recipe | {"evaluation": spec | {"gate": gate}}
    answer = client.post("/merges", json=body)
    assert answer.status_code == 202, answer.text
    merge_id = answer.json()["id"]

    def verdicts() -> list[dict[str, Any]]:
        urls = (f"/merges/{merge_id}", f"/merges/{merge_id}/wer")
        return [client.get(url).json()["evaluation"]["gate"] for url in urls]

    pending = {
        "passed": None, "max_wer": {"set": 0.1}, "max_regression": {"*": 0.01},
        "max_loops": {}, "max_words_on_silence": {}, "against": "base", "failures": [],
    }  # fmt: skip
    assert verdicts() == [pending] * 2
    stored = EvaluationSpec.model_validate(body["evaluation"]).model_dump(mode="json")
    succeed(backend.engine, backend.store, merge_id, stored)
    assert verdicts() == [pending] * 2
    [evaluation] = client.get(f"/merges/{merge_id}/evaluations").json()["data"]
    finish(backend, merge_id, evaluation, {"merge": result(WORSE), "base": result(PERFECT)})
    first, second = verdicts()
    assert first == second
    assert first["passed"] is False
    found = [(failure["dataset"], failure["check"]) for failure in first["failures"]]
    assert found == [("set", "max_wer"), ("set", "max_regression")]
    assert client.get(evaluation["links"]["self"]).json()["gate"] == first
    asked = client.get(f"/merges/{merge_id}/wer").json()["evaluation"]
    standing = {"name": "set", "evaluation_id": evaluation["id"], "status": "succeeded"}
    assert (asked["datasets"], asked["sets"]) == (["set"], [standing])


def test_a_merge_within_its_limits_passes(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    asked = spec | {"gate": {"max_wer": 0.1, "max_regression": {"set": 0}, "against": "two"}}
    evaluation = client.post(f"/merges/{finished}/evaluations", json=asked).json()
    finish(backend, finished, evaluation, {"merge": result(PERFECT), "two": result(WORSE)})
    assert client.get(evaluation["links"]["self"]).json()["gate"]["passed"] is True


def test_an_evaluation_that_failed_or_was_cancelled_has_not_passed(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    url = f"/merges/{finished}/evaluations"
    asked = spec | {"gate": {"max_wer": 1}}
    cancelled = client.post(url, json=asked).json()
    client.post(cancelled["links"]["cancel"])
    failed = client.post(url, json=asked).json()
    lease = take(backend.engine, failed["id"], JobKind.EVALUATION)
    end(backend.engine, lease, "failed", error={"code": "evaluation_failed", "message": "x"})
    for evaluation, status in ((cancelled, "cancelled"), (failed, "failed")):
        gate = client.get(evaluation["links"]["self"]).json()["gate"]
        assert gate["passed"] is False
        assert gate["failures"][0]["message"] == f"the evaluation is {status}"


@pytest.mark.parametrize(
    ("gate", "param", "said"),
    [
        ({"max_wer": {"sett": 0.1}}, "gate", 'no set "sett". Did you mean "set"? Sets: set'),
        ({"max_wer": "low"}, "gate.max_wer", "low"),
        ({}, "gate", "max_regression"),
        ({"max_regression": 0, "against": "three"}, "gate.against", "Known: base, one, two"),
        (
            {"max_regression": 0, "against": "merge://mrg_01ARZ3NDEKTSV4RRFFQ69G5FAV"},
            "gate",
            "in compare_with",
        ),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused(
    client: TestClient, finished: str, recipe: Any, spec: Any, gate: Any, param: str, said: str
):
    asked = spec | {"gate": gate}
    for url, body, prefix in (
        (f"/merges/{finished}/evaluations", asked, ""),
        ("/merges", recipe | {"evaluation": asked}, "evaluation."),
    ):
        document = refusal(client.post(url, json=body), 422, "invalid_request")
        assert [error["param"] for error in document["errors"]] == [prefix + param]
        assert said in str(document["errors"])
