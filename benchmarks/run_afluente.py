"""Child: merges with Afluente, files to file. Arguments: method, parameters, output, folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.services.preparation import prepare, source_policy
from benchmarks.measure import WITHOUT_BASE, report, timed
from worker.merging.engine.run import run
from worker.merging.local import describe_files, fetch_all, make_job


def main() -> None:
    """Merge once: inputs hashed first and told apart, as the digest of the outputs is."""
    method, parameters, output, base, *experts = sys.argv[1:]
    document = {"checkpoints": experts, "method": method, "parameters": json.loads(parameters)}
    if method not in WITHOUT_BASE:
        document["base"] = base
    folder = Path(output)
    shutil.rmtree(folder, ignore_errors=True)
    settings = Settings(data_dir=folder.parent / "data", device="cpu")
    policy = source_policy(settings, None, any_path=True)
    prepared = prepare(parse_request(document).recipe, policy)
    fetched = []
    hash_inputs = timed(lambda: fetched.extend(fetch_all(prepared, policy)))
    job = make_job(prepared, fetched, folder, settings)
    seconds = timed(lambda: run(job))
    hash_outputs = timed(lambda: describe_files(folder / "tensors"))
    report(seconds, hash_inputs=hash_inputs, hash_outputs=hash_outputs)


if __name__ == "__main__":
    main()
