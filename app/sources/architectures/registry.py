"""The architectures that are known, and which one a config.json is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.contract.errors import Problem
from app.contract.evaluation import Measurement
from app.sources.architectures.architecture import Architecture, Task
from app.sources.architectures.ctc import CTC
from app.sources.architectures.seq2seq import ENCODER_DECODERS
from app.sources.architectures.whisper.family import Whisper

KNOWN: tuple[Architecture, ...] = (Whisper(), *ENCODER_DECODERS, *CTC)
ANY = Architecture()
_TASKS: Mapping[Task, str] = {"seq2seq": "encoder-decoder", "ctc": "CTC"}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the first known architecture that recognises a config.json, else ANY."""
    return next((known for known in KNOWN if known.recognises(config)), ANY)


def undecodable(summary: Mapping[str, str | None]) -> str | None:
    """Return why checkpoints of this architecture cannot be evaluated, None if they can.

    `summary` is that of Architecture.summary.
    """
    if _summarized(summary).task is not None:
        return None
    known = [one.name for one in KNOWN if one.task]
    return (
        f"{_kind(summary)} checkpoints can be merged but not evaluated: there is no decoder for "
        f"them, only for {', '.join(known)}. Leave the evaluation out."
    )


def calibration_obstacle(summary: Mapping[str, str | None]) -> str | None:
    """Return why calibration sets cannot be used with this architecture, None if they can.

    `summary` is that of Architecture.summary.
    """
    if _summarized(summary).can_be_calibrated:
        return None
    known = ", ".join(one.name for one in KNOWN if one.can_be_calibrated)
    return (
        f"{_kind(summary)} checkpoints cannot be calibrated, only {known}; choose a method without "
        "calibration sets."
    )


def refusals(summary: Mapping[str, str | None], asked: Measurement) -> list[Problem]:
    """Return what a request asks of the decoder and this architecture's cannot do, by field.

    `summary` is that of Architecture.summary.
    """
    architecture, kind, found = _summarized(summary), _kind(summary), []
    stated = "num_beams" in asked.model_fields_set
    if stated and asked.num_beams > 1 and not architecture.searches_beams:
        message = f"{kind} is decoded greedily, without beams; leave num_beams out, or say 1."
        found.append(Problem(message, "num_beams"))
    if asked.search != "default" and not architecture.falls_back:
        message = f"{kind} has no {asked.search}; leave search out."
        found.append(Problem(message, "search"))
    if asked.backend != "default" and not architecture.converts:
        message = f"{kind} is not decoded with {asked.backend}; leave backend out."
        found.append(Problem(message, "backend"))
    tasks: dict[str, str | None] = {"task": asked.task}
    tasks |= {f"datasets[{index}].task": one.task for index, one in enumerate(asked.datasets)}
    for param, task in tasks.items():
        if task == "translate" and not architecture.translates:
            message = f"{kind} writes the language that it hears; leave the task out."
            found.append(Problem(message, param))
    return found


def families_table() -> str:
    """Return the families that have a decoder as a table of docs/architectures.md."""
    head = "| family | `model_type` | decoded as | beams | temperature fallback | translation |\n"
    rows = "".join(
        f"| `{one.model_class}` | `{one.name}` | {_TASKS[one.task]} | {_shown(one.searches_beams)} "
        f"| {_shown(one.falls_back)} | {_shown(one.translates)} |\n"
        for one in KNOWN
        if one.task
    )
    return f"{head}| --- | --- | --- | --- | --- | --- |\n{rows}"


def _shown(can: bool) -> str:
    return "yes" if can else "no"


def _summarized(summary: Mapping[str, str | None]) -> Architecture:
    classes = [summary["model_class"]] if summary["model_class"] else None
    return architecture_of({"model_type": summary["model_type"], "architectures": classes})


def _kind(summary: Mapping[str, str | None]) -> str | None:
    return summary["model_class"] or summary["model_type"]
