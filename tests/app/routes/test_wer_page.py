from __future__ import annotations

import copy
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.routes.negotiation import preferred
from app.services import peers
from app.services.backend import Backend
from app.storage import evaluations
from app.storage.database import writing
from app.storage.leases import JobKind
from tests.app.routes.conftest import end, succeed, take
from tests.app.routes.test_create_merge import refusal
from tests.app.routes.test_evaluations import PERFECT, WORSE, evaluate, result, spec

__all__ = ["spec"]

FORMS = {"application/json": "json", "text/html": "html", "text/csv": "csv"}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"), ("*/*", "json"), ("application/*", "json"), (BROWSER, "html"),
        ("text/html", "html"), ("text/csv", "csv"), ("text/html;q=0.5, application/json", "json"),
        ("TEXT/HTML; q=0.9, */*;q=0.1", "html"), ("text/html;q=0", "json"),
        ("image/png", "json"), ("text/html;q=nonsense", "json"), (",;,=,", "json"),
    ],
)  # fmt: skip
def test_the_accept_header_chooses(accept: str, form: str):
    assert preferred(accept, FORMS) == form


def test_browsers_get_a_page_and_programs_json(
    client: TestClient, backend: Backend, finished: str, spec: dict[str, Any]
):
    hostile = ("<script>alert(1)</script>", *WORSE[1:])
    evaluate(client, backend, finished, spec, {"merge": result(hostile), "base": result(PERFECT)})
    url = f"/merges/{finished}/wer"
    for answer in (
        client.get(url, headers={"Accept": BROWSER}),
        client.get(f"{url}?format=html"),
    ):
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
        assert "<script" not in answer.text
        assert "33.33" in answer.text or "44.44" in answer.text
    json_answer = client.get(url)
    assert json_answer.json()["merge_id"] == finished
    assert json_answer.headers["vary"] == "Accept"
    csv = client.get(url, headers={"Accept": "text/csv"})
    assert csv.headers["content-type"].startswith("text/csv")
    asked = client.get(f"{url}?format=json", headers={"Accept": BROWSER})
    assert asked.headers["content-type"] == "application/json"


def test_the_page_is_available_at_once(client: TestClient, merge_id: str):
    answer = client.get(f"/merges/{merge_id}/wer?format=html")
    assert answer.status_code == 200
    assert "Nothing has been decoded yet." in answer.text
    missing = "/merges/mrg_01ARZ3NDEKTSV4RRFFQ69G5FAV/wer?format=html"
    refusal(client.get(missing), 404, "not_found")
    refusal(client.get(f"/merges/{merge_id}/wer?format=pdf"), 422, "invalid_request")


def test_other_merges_are_called_by_their_names(
    client: TestClient, backend: Backend, recipe: dict[str, Any], spec: dict[str, Any]
):
    others = []
    for name in ("joint training", "twice", "twice", None):
        body = recipe | ({} if name is None else {"name": name})
        others.append(str(client.post("/merges", json=body).json()["id"]))
        succeed(backend.engine, backend.store, others[-1])
    own = str(client.post("/merges", json=recipe).json()["id"])
    succeed(backend.engine, backend.store, own)
    results = {"merge": result(WORSE)} | {other: result(PERFECT) for other in others}
    spec |= {"compare_with": [f"merge://{other}" for other in others]}
    evaluate(client, backend, own, spec, results)
    page = client.get(f"/merges/{own}/wer?format=html").text
    header = page.partition("<thead>")[2].partition("</thead>")[0]
    assert ">joint training<" in header
    for other in others[1:3]:
        assert f">twice …{other[-4:]}<" in header
    assert f"…{others[3][-4:]}<" in header


def measured(
    client: TestClient,
    backend: Backend,
    recipe: dict[str, Any],
    spec: dict[str, Any],
    coefficient: float,
    **changes: Any,
) -> str:
    """Return a merge with results on an in-domain and an out-of-domain set."""
    body = recipe | {"parameters": {"scaling_coefficient": coefficient}}
    merge_id = str(client.post("/merges", json=body).json()["id"])
    succeed(backend.engine, backend.store, merge_id)
    stored = []
    for name, group, digest in (("in", "in_domain", "a"), ("out", "out_of_domain", "b")):
        document, utterances = copy.deepcopy(result(WORSE, **changes))
        document |= {"name": name, "group": group}
        document["result"]["manifest_sha256"] = digest * 64
        stored.append((document, utterances))
    evaluation_id = client.post(f"/merges/{merge_id}/evaluations", json=spec).json()["id"]
    lease = take(backend.engine, evaluation_id, JobKind.EVALUATION)
    with writing(backend.engine) as connection:
        for position, (document, utterances) in enumerate(stored):
            evaluations.save_result(
                connection, lease.id, system="merge", dataset=document["name"],
                position=position, result=document, utterances=utterances,
            )  # fmt: skip
    end(backend.engine, lease, "succeeded")
    return merge_id


def test_merges_measured_alike_share_the_chart(
    client: TestClient,
    backend: Backend,
    recipe: dict[str, Any],
    spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    measured(client, backend, recipe, spec, 0.1)
    measured(client, backend, recipe, spec, 0.2, num_beams=1)  # decoded otherwise
    measured(client, backend, recipe, spec, 0.3, skipped=1)  # not whole
    own = measured(client, backend, recipe, spec, 0.4)
    measured(client, backend, recipe, spec, 0.5)

    def labels() -> list[str]:
        page = client.get(f"/merges/{own}/wer?format=html").text
        table = page.partition("The chart's points")[2].partition("</table>")[0]
        return [part.partition("<")[0] for part in table.split('<th scope="row">')[1:]]

    assert labels() == [f"task_arithmetic λ={c}" for c in ("0.4", "0.5", "0.1")]
    monkeypatch.setattr(peers, "MOST_PEERS", 1)
    assert labels() == [f"task_arithmetic λ={c}" for c in ("0.4", "0.5")]
