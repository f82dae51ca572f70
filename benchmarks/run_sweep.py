"""Child: merges several λ at once, files to file. Arguments: method, JSON, output, folders.

The JSON has `values` of λ, and `discard`: whether what is merged is thrown away, not written.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.contract.settings import Settings
from app.contract.sweeps import parse_sweep
from app.services.preparation import prepare, replan, source_policy
from benchmarks.measure import report, timed
from worker.merging.engine import run as engine
from worker.merging.engine.writing import OutputWriter
from worker.merging.local import fetch_all, make_job


class Discarding(OutputWriter):
    """Takes what an OutputWriter takes and writes nothing, nor digests it."""

    def __init__(self, attempt: Path, *_: Any) -> None:
        self.folder = attempt / "tensors"
        self.folder.mkdir(parents=True)

    def write(self, *_: Any) -> None:
        pass

    def finished(self, *_: Any) -> None:
        pass

    def adopt(self, *_: Any) -> list[Any]:
        return []

    def close(self) -> None:
        pass


def main() -> None:
    """Merge once with inputs that are fetched already; tell wall and CPU seconds."""
    method, options, output, base, *experts = sys.argv[1:]
    given = json.loads(options)
    document = {"checkpoints": experts, "base": base, "method": method}
    points = parse_sweep(document, {"scaling_coefficient": given["values"]})
    folder = Path(output)
    shutil.rmtree(folder, ignore_errors=True)
    settings = Settings(data_dir=folder.parent / "data", device="cpu")
    policy = source_policy(settings, None, any_path=True)
    prepared = prepare(points[0].recipe, policy)
    fetched = fetch_all(prepared, policy)
    if given["discard"]:
        vars(engine)["OutputWriter"] = Discarding
    jobs: Sequence[engine.Job] = [
        replace(
            make_job(replan(prepared, point.recipe), fetched, folder / point.name, settings),
            point=point.name,
        )
        for point in points
    ]
    begun = time.process_time()
    seconds = timed(lambda: engine.run_all(jobs))
    report(seconds, cpu_seconds=time.process_time() - begun)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
