"""Studies in this process, without the service: what `afluente study --output` does.

The same job runs on a database in the output folder, so that a study that was interrupted goes on
where it stopped when the command is repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.contract.errors import ConflictError, JobError
from app.contract.settings import Settings
from app.contract.spaces import Study
from app.contract.states import FINAL
from app.services import studies as services
from app.services import study_table
from app.services.backend import Backend, open_backend
from app.services.idempotency import Caller
from app.services.resources import StudyResource
from app.storage import events, merges, studies
from app.storage.database import writing
from app.storage.leases import JobKind, abandon, owners, recover, take
from worker.attempts import attempt_lease
from worker.processes.owners import describe_process, is_known_alive
from worker.study_job import do_study

Report = Callable[[str, Mapping[str, Any]], None]
_POLL_SECONDS = 0.5
# An interrupted study may be repeated as often as one likes.
_MOST_CRASHES = 10**6


def run_study(
    document: Mapping[str, Any], output: Path, settings: Settings, report: Report
) -> StudyResource:
    """Run a study into a folder; return it as `GET /studies/{id}` would.

    The folder gets the table (`table.json`, `.csv`, `.md`, `.tex`, `.html`) and the kept merges, a
    folder each in `merges`. `report` is called with each event's type and data. Raises
    AfluenteError; ConflictError if the folder holds another study.
    """
    output = output.absolute()
    backend = open_backend(_settings(settings, output))
    try:
        study = services.parse(backend, document)
        study_id = _submitted(backend, study, output)
        with _reporting(backend, study_id, report):
            _attempt(backend, study_id)
        found = services.get(backend, study_id)
        if found.status != "succeeded":
            raise JobError(
                found.error.message
                if found.error
                else f"The study was interrupted, perhaps because the disk of {output} is full; "
                "repeat the command to go on."
            )
        _write(backend, found, output)
        return found
    finally:
        backend.close()


def _attempt(backend: Backend, study_id: str) -> None:
    """Run the study if it is queued, whatever else an earlier process left behind."""
    worker_id, seconds = _worker_id(), backend.settings.lease_seconds
    owner = describe_process(worker_id)
    lease = take(backend.engine, JobKind.STUDY, study_id, owner, seconds)
    if lease is not None:
        attempt_lease(backend.engine, lease, backend.settings, worker_id, do_study)


def _worker_id() -> str:
    return f"local-{os.getpid()}"


def _settings(settings: Settings, output: Path) -> Settings:
    """Return the settings with everything in the output folder, and every path allowed."""
    given = settings.model_dump(exclude_unset=True)
    own = {
        "data_dir": output / "data",
        "file_roots": (Path("/"),),
        "broker_url": None,
        "database_url": None,
        "artifact_dir": None,
    }
    return Settings(**{**given, "cache_dir": settings.cache, **own})


def _submitted(backend: Backend, study: Study, output: Path) -> str:
    """Return the study in the folder, queued: a new one, or the one to go on with."""
    rows = studies.page(backend.engine, size=1)
    if not rows:
        resource, _ = services.submit(backend, study, Caller())
        return resource.id
    row = rows[0]
    if row["request"] != study.request.model_dump(mode="json"):
        raise ConflictError(
            f"{output} holds another study; name a new folder, or delete it.", param="output"
        )
    if row["status"] not in FINAL:
        others = owners(backend.engine) - {describe_process(_worker_id())}
        if any(is_known_alive(owner) for owner in others):
            raise ConflictError(
                f"Another process runs the study in {output}; wait for it, or name a new folder.",
                param="output",
            )
        abandon(backend.engine, "")
        recover(backend.engine, _MOST_CRASHES, {}, {})
    elif row["status"] != "succeeded":
        with writing(backend.engine) as connection:
            studies.extend(connection, row["id"], trials=row["trials"], seconds=row["seconds"])
    return str(row["id"])


@contextmanager
def _reporting(backend: Backend, study_id: str, report: Report) -> Iterator[None]:
    """Report the study's new events from a thread."""
    done = threading.Event()
    known = events.read(backend.engine, study_id, limit=10**6)
    last = int(known[-1]["sequence"]) if known else 0

    def follow() -> None:
        after, over = last, False
        while not over:
            over = done.wait(_POLL_SECONDS)
            for event in events.read(backend.engine, study_id, after=after):
                after = int(event["sequence"])
                report(str(event["type"]), event["data"])

    thread = threading.Thread(target=follow, name="reporting")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _write(backend: Backend, study: StudyResource, output: Path) -> None:
    """Write the table in every form, and put the kept merges beside it."""
    document = study_table.table(backend, study.id)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (output / "table.json").write_text(text, encoding="utf-8")
    for name, form in (("table.csv", "csv"), ("table.md", "markdown"), ("table.tex", "latex")):
        written = study_table.table_as(backend, study.id, form)
        (output / name).write_text(written, encoding="utf-8", newline="")
    page, _ = study_table.page(backend, study.id)
    (output / "table.html").write_text(page, encoding="utf-8")
    for kept in study.outcome.kept:
        row = merges.get(backend.engine, kept.merge_id or "")
        if row is None or row["artifact_folder"] is None:
            continue
        target = output / "merges" / f"trial-{kept.trial}"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            source = backend.store.published_folder(row["artifact_folder"])
            shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
