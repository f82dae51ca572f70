"""What benchmarks need to run on any commit: inputs that merge, and times that add up."""

import pytest

from benchmarks.inputs import Shape, make_checkpoints
from benchmarks.measure import measure_merge, recipe_of


def test_made_checkpoints_merge_and_the_times_of_the_merge_add_up(tmp_path):
    folders = [tmp_path / name for name in ("base", "one", "other")]
    make_checkpoints(Shape("small", 64, 1, 512, dtype="float16"), folders)
    merge = measure_merge(recipe_of("ties", folders), tmp_path / "out" / "merged")
    assert merge.before + merge.merging + merge.after == pytest.approx(merge.whole)
    assert 0 < merge.before < merge.first_tensor
    assert 0 < merge.merging_cpu < merge.whole_cpu
    assert merge.peak_mib > 100
