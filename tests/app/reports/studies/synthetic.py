"""Synthetic studies: random words, of which each system hears some wrong."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.contract.evaluation import (
    DatasetResult,
    DecodingRecord,
    EvaluatedDataset,
    UtteranceResult,
)
from app.reports.studies.systems import StudyFacts, StudySystem

WORDS = ("um", "dois", "três", "quatro", "cinco", "casa", "porto", "rio", "mar", "sol", "lua")
HOSTILE = "<script>alert('x')</script> & \\textbf{50%} $_#^~ | *a* `b` [c]"


@dataclass(frozen=True)
class Speech:
    """A set of utterances, read by a few speakers."""

    name: str
    group: str
    utterances: int = 24
    speakers: int = 6

    def decoded(self, rate: float, system: str, fraction: float = 1.0) -> EvaluatedDataset:
        """Return a result in which a word is wrong with probability `rate`."""
        texts = random.Random(zlib.crc32(self.name.encode()))
        luck = random.Random(zlib.crc32(f"{self.name} {system}".encode()))
        utterances = []
        for index in range(self.utterances):
            words = texts.choices(WORDS, k=texts.randint(4, 9))
            heard = [word if luck.random() >= rate else "outra" for word in words]
            utterances.append(
                UtteranceResult(
                    index=index,
                    audio=f"{index}.wav",
                    reference=" ".join(words),
                    hypothesis=" ".join(heard),
                    audio_seconds=len(words) / 2,
                    decode_seconds=0.1,
                    speaker=f"speaker {index % self.speakers}",
                )
            )
        shown = utterances[: max(1, round(fraction * self.utterances))]
        result = DatasetResult(
            utterances=tuple(shown),
            decoding=DecodingRecord(num_beams=1, language="pt", task="transcribe", dtype="float32"),
            language="pt",
            manifest_sha256=f"{zlib.crc32(self.name.encode()):064x}",
        )
        return EvaluatedDataset(name=self.name, group=self.group, result=result)


SETS = (
    Speech("telephone", "in_domain"),
    Speech("parliament", "in_domain"),
    Speech("street", "out_of_domain"),
    Speech("english", "english"),
)


def system(
    kind: str, label: str, rates: Sequence[float], sets: Sequence[Speech] = SETS, **fields: Any
) -> StudySystem:
    """Return a system with a rate for each set."""
    fraction = fields.get("fraction", 1.0)
    results = tuple(
        one.decoded(rate, f"{label} {fields.get('number')}", fraction)
        for one, rate in zip(sets, rates, strict=False)
    )
    key = f"{kind}:{label}" if kind != "trial" else f"trial:{fields['number']}"
    return StudySystem(key, kind, label, results, **fields)  # type: ignore[arg-type]


def on_development() -> list[StudySystem]:
    """Return a base, two experts, a reference and five trials, one of them stopped."""
    swept = {"scaling_coefficient": 1.0, "beta": 0.3}
    return [
        system("trial", "a", (0.2, 0.2, 0.3, 0.2), number=0, method="soup", objectives=(0.2,)),
        system(
            "trial", "b", (0.05, 0.08, 0.2, 0.12), number=1, method="boosted_tsv_m",
            values=swept, objectives=(0.06,), feasible=True,
        ),
        system(
            "trial", "c", (0.0, 0.0, 0.0, 0.0), number=2, method="boosted_tsv_m", fraction=0.25,
            values=swept | {"scaling_coefficient": 2.0}, status="stopped", objectives=(0.0,),
            reason="english: 3.1 points above the base, at most 0.5 allowed",
        ),
        system(
            "trial", "d", (0.06, 0.07, 0.2, 0.3), number=3, method="boosted_tsv_m",
            values=swept | {"scaling_coefficient": 1.5}, objectives=(0.065,), feasible=False,
        ),
        system(
            "trial", "e", (), number=4, method="iso_c", status="failed", fraction=0.0,
            reason=f"shape of {HOSTILE}",
        ),
        system("reference", "full-ft", (0.06, 0.06, 0.25, 0.3)),
        system("expert", HOSTILE, (0.05, 0.3, 0.4, 0.2)),
        system("expert", "parliament", (0.3, 0.05, 0.4, 0.2)),
        system("base", "base", (0.3, 0.35, 0.45, 0.1)),
    ]  # fmt: skip


def on_test() -> list[StudySystem]:
    """Return the same, with the two merges that were kept."""
    whole = [one for one in on_development() if one.kind != "trial" or one.number in {0, 1}]
    return [
        replace(one, merge_id=f"mrg_{one.number}") if one.kind == "trial" else one for one in whole
    ]


def facts(**changes: Any) -> StudyFacts:
    """Return a study that ships trial 1."""
    made = StudyFacts(
        id="std_1",
        name=f"ep {HOSTILE}",
        status="succeeded",
        phase=None,
        objectives=("in_domain.macro",),
        constraints=({"set": "english", "max_regression": 0.005, "against": "base"},),
        outcome={
            "winner": 1,
            "shipped": "mrg_1",
            "reason": None,
            "kept": [{"trial": 1, "merge_id": "mrg_1"}, {"trial": 0, "merge_id": "mrg_0"}],
            "front": [1],
        },
        budget={"trials": {"used": 5, "limit": 8}, "seconds": {"used": 61.5, "limit": None}},
        importance={"boosted_tsv_m": {"beta": 0.7, "scaling_coefficient": 0.3}},
    )
    return replace(made, **changes)
