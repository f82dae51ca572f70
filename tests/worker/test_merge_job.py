"""The files that an attempt at a merge keeps."""

from __future__ import annotations

from pathlib import Path

import torch

from app.storage import leases
from app.storage.artifacts import ArtifactStore
from app.storage.database import connect
from app.storage.leases import JobKind
from tests.tiny_whisper import variant
from tests.worker.test_evaluation_job import SAMPLES, Service, service

__all__ = ["service"]


def test_an_attempt_that_has_taken_over_what_others_finished_keeps_only_its_own(
    service: Service, tmp_path: Path
) -> None:
    """The merge fails at its last tensors: what it finished stays, for a retry."""
    base = SAMPLES / "checkpoints/base"
    last = "model.encoder.layer_norm.weight"

    def broken(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * torch.nan if name == last else tensor

    expert = variant(base, tmp_path / "speech" / "broken", broken)
    recipe = {"checkpoints": [base.as_uri(), expert.as_uri()], "method": "soup"}
    merge_id = str(service.client.post("/merges", json=recipe).json()["id"])
    engine, store = connect(service.settings.database), ArtifactStore(service.settings.artifacts)
    crashed = []
    for _ in range(3):
        lease = leases.take(engine, JobKind.MERGE, merge_id, "wrk_dead:x:1:1", 10)
        assert lease is not None
        leases.abandon(engine, lease.owner)
        crashed.append(store.attempt_folder(merge_id, lease.fence))
        crashed[-1].mkdir(parents=True)
        (crashed[-1] / "tensors").write_bytes(bytes(1000))
        leases.recover(engine, 9, {}, {})
    engine.dispose()
    service.work(JobKind.MERGE, merge_id)
    found = service.client.get(f"/merges/{merge_id}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "non_finite_input"), found
    assert not any(folder.exists() for folder in crashed)
    assert len(store.earlier_attempts(merge_id)) == 1
