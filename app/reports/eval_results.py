"""Writes error rates as the Hugging Face hub's `.eval_results/*.yaml`.

The format is that of https://huggingface.co/docs/hub/eval-results; `huggingface_hub` reads it with
`parse_eval_result_entries`. A result names a dataset of the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from app.reports.scored import ScoredDataset


@dataclass(frozen=True)
class HubResult:
    """A scored dataset of the hub: its `organisation/name`, commit or other revision, part, day."""

    scored: ScoredDataset
    repo: str
    revision: str | None
    config: str | None
    split: str | None
    day: str


def render_eval_results(results: Sequence[HubResult]) -> str:
    """Return the YAML; rates are in percent, as leaderboards show them.

    The last of several results of a dataset's task counts, and datasets without a rate are left
    out. `task_id` is the dataset's config, else "default", as in most benchmarks' eval.yaml.
    """
    entries = {
        (one.repo, one.config, one.split): entry for one in results if (entry := _entry(one))
    }
    return yaml.safe_dump(list(entries.values()), sort_keys=False, allow_unicode=True)


def _entry(one: HubResult) -> dict[str, Any] | None:
    rate = one.scored.rate.counts.rate
    if rate is None:
        return None
    dataset = {"id": one.repo, "task_id": one.config or "default"}
    if one.revision:
        dataset["revision"] = one.revision
    return {
        "dataset": dataset,
        "value": round(100 * rate, 2),
        "date": one.day,
        "notes": ", ".join(_notes(one)),
    }


def _notes(one: HubResult) -> list[str]:
    result = one.scored.evaluated.result
    decoding = result.decoding
    notes = [f"{one.scored.metric.upper()} in percent"]
    notes += [f"split {one.split}"] if one.split else []
    notes += [f"normaliser {one.scored.normalizer.name}"]
    search = "greedy" if decoding.num_beams == 1 else f"{decoding.num_beams} beams"
    notes += [search, decoding.dtype]
    skipped = len(result.skipped)
    return notes + ([f"{skipped} utterances skipped"] if skipped else [])
