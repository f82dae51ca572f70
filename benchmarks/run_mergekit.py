"""Child, in mergekit's environment: merges with mergekit-pytorch's own function, files to file."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks.measure import WITHOUT_BASE, report, timed


def main() -> None:
    """Merge once; imports are not counted."""
    method, parameters, output, base, *experts = sys.argv[1:]
    from mergekit.scripts.merge_raw_pytorch import main as merge

    folder = Path(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = json.loads(parameters)
    each = given.pop("each", {})
    config = {
        "merge_method": method,
        "models": [{"model": f"{e}/model.safetensors", "parameters": each} for e in experts],
        "parameters": given,
        "dtype": "float32",
    }
    if method not in WITHOUT_BASE:
        config["base_model"] = f"{base}/model.safetensors"
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(config))
    arguments = [str(path), str(folder / "out")]
    seconds = timed(lambda: merge.main(arguments, standalone_mode=False))
    report(seconds)


if __name__ == "__main__":
    main()
