"""Judges a `/wer` document by a gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.contract.gate import GateSpec, limit_of
from app.contract.states import FINAL

# A rate that equals its limit must not fail by rounding.
_ROUNDING = 1e-12


def judge(
    document: Mapping[str, Any], gate: GateSpec, sets: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Return the verdict `{"passed", "failures", ...}` on a document.

    `sets` are the requested datasets with the state of their newest evaluation (`evaluation.sets`
    in `/wer`). A dataset fails if it is above a limit, missing, partial or without a rate, or if
    its newest evaluation has not succeeded; an older result does not count. A failure is
    `{"dataset", "check", "value", "limit", "excess", "message"}`.
    """
    newest = {dataset["name"]: dataset for dataset in document["datasets"]}
    standing = {one["name"]: one for one in sets}
    failures: list[dict[str, Any]] = []
    for name in dict.fromkeys([*standing, *newest, *gate.names]):
        failures += _judge_set(name, newest.get(name), gate, standing.get(name))
    if not failures:
        failures += _unfinished(document["status"])
    if not newest and not failures:
        failures.append(_failure(None, "complete", "nothing was evaluated"))
    return verdict(gate, failures)


def verdict(gate: GateSpec, failures: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """Return a verdict as responses show it; None instead of failures means that it is open."""
    return {
        **gate.model_dump(),
        "passed": None if failures is None else not failures,
        "failures": [dict(failure) for failure in failures or ()],
    }


def unfinished(gate: GateSpec, status: str) -> dict[str, Any]:
    """Return the verdict on an evaluation without results; open while it runs."""
    if status not in FINAL:
        return verdict(gate, None)
    unjudged = _failure(None, "complete", "the evaluation ended without a verdict")
    return verdict(gate, [*_unfinished(status)] or [unjudged])


def _unfinished(status: str) -> Iterator[dict[str, Any]]:
    if status == "none":
        yield _failure(None, "complete", "the merge was never evaluated")
    elif status not in {"succeeded", "partial"}:
        yield _failure(None, "complete", f"the evaluation is {status}")


def _judge_set(
    name: str,
    dataset: Mapping[str, Any] | None,
    gate: GateSpec,
    standing: Mapping[str, str] | None,
) -> Iterator[dict[str, Any]]:
    limit = {check: limit_of(limits, name) for check, limits in gate.limits.items()}
    if set(limit.values()) == {None}:
        return
    status = standing["status"] if standing else "succeeded"
    heard_nothing = dataset is not None and dataset["status"] == "failed"
    if standing and status not in {"succeeded", "partial"} and not heard_nothing:
        state = "failed" if status in FINAL else "has not ended"
        text = f"its newest evaluation ({standing['evaluation_id']}) {state}"
        yield _failure(name, "complete", text)
        return
    if dataset is None:
        yield _failure(name, "complete", "it was not evaluated")
        return
    if dataset["status"] != "succeeded":
        skipped = len(dataset["warnings"]["skipped"])
        total = skipped + dataset["utterances"]
        yield _failure(name, "complete", f"{skipped} of {total} utterances were skipped")
    elif standing and status == "partial":
        text = (
            f"its newest evaluation ({standing['evaluation_id']}) is partial; the rate is from an "
            "earlier one"
        )
        yield _failure(name, "complete", text)
    highest, allowed = limit["max_wer"], limit["max_regression"]
    if highest is not None:
        yield from _too_high(name, dataset, highest)
    if allowed is not None:
        yield from _regressed(name, dataset, gate.system, allowed)
    yield from _hallucinated(name, dataset, limit)


def _too_high(name: str, dataset: Mapping[str, Any], limit: float) -> Iterator[dict[str, Any]]:
    metric = dataset["metric"]
    rate = dataset[metric]
    if rate is None:
        yield _failure(name, "max_wer", "no rate: no reference has any words")
    elif rate > limit + _ROUNDING:
        text = (
            f"{metric.upper()} {_percent(rate)} % is {_percent(rate - limit)} points above "
            f"the {_percent(limit)} % allowed"
        )
        yield _failure(name, "max_wer", text, rate, limit)


def _regressed(
    name: str, dataset: Mapping[str, Any], system: str, limit: float
) -> Iterator[dict[str, Any]]:
    found = dataset["compared_with"].get(system)
    if found is None:
        reason = dataset["not_compared_with"].get(system, "it was not evaluated")
        yield _failure(name, "max_regression", f"{system} is not comparable: {reason}")
        return
    if found["utterances"] != dataset["utterances"]:
        text = (
            f"{system} decoded only {found['utterances']} of the {dataset['utterances']} utterances"
        )
        yield _failure(name, "complete", text)
    delta, metric = found["delta"], dataset["metric"]
    if delta is None:
        yield _failure(name, "max_regression", "no rate: no reference has any words")
    elif delta > limit + _ROUNDING:
        text = (
            f"{metric.upper()} {_percent(dataset[metric])} % is {_percent(abs(delta))} points "
            f"{'above' if delta >= 0 else 'below'} {system}'s {_percent(found[metric])} %, "
            f"{_percent(delta - limit)} more than the {_percent(limit)} allowed"
        )
        yield _failure(name, "max_regression", text, delta, limit)


def _hallucinated(
    name: str, dataset: Mapping[str, Any], limit: Mapping[str, float | None]
) -> Iterator[dict[str, Any]]:
    loops, words = limit["max_loops"], limit["max_words_on_silence"]
    if loops is None and words is None:
        return
    found = dataset.get("hallucinations")
    if found is None:
        yield _failure(name, "complete", "the service is too old to count loops; upgrade it")
        return
    share, spurious = found["loop_rate"], found["words_on_silence"]
    if loops is not None and share is not None and share > loops + _ROUNDING:
        text = (
            f"{found['loops']} of {dataset['utterances']} transcripts repeat themselves "
            f"({_percent(share)} %), {_percent(loops)} % are allowed"
        )
        yield _failure(name, "max_loops", text, share, loops)
    if words is not None and spurious > words:
        text = (
            f"{spurious} words were transcribed in {found['silent_utterances']} silent utterances, "
            f"{words:g} are allowed"
        )
        yield _failure(name, "max_words_on_silence", text, spurious, words)


def _failure(
    name: str | None,
    check: str,
    message: str,
    value: float | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    excess = None if value is None or limit is None else value - limit
    where = f"{name}: " if name else ""
    return {
        "dataset": name, "check": check, "value": value, "limit": limit, "excess": excess,
        "message": f"{where}{message}",
    }  # fmt: skip


def _percent(rate: float) -> str:
    """Return a fraction in percent with two decimals, or more for a tiny fraction."""
    text = f"{100 * rate:.2f}"
    return f"{100 * rate:.2g}" if rate and not float(text) else text
