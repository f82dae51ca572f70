"""Evaluated datasets made of pairs of texts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.contract.evaluation import (
    DatasetResult,
    DecodingRecord,
    EvaluatedDataset,
    SkippedUtterance,
    UtteranceResult,
)

MakeDataset = Callable[..., EvaluatedDataset]


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """Return a function: a name, (reference, hypothesis) pairs, and fields to change."""

    def make(name: str, *pairs: tuple[str, str], **fields: object) -> EvaluatedDataset:
        skipped = [
            SkippedUtterance(index=index, audio=f"{index}.wav", reason="the file is empty")
            for index in fields.get("skip", ())
        ]
        gone = {item.index for item in skipped}
        utterances = [
            UtteranceResult(
                index=index,
                audio=f"{index}.wav",
                reference=reference,
                hypothesis=hypothesis,
                audio_seconds=fields.get("seconds", {}).get(index, 2.0),
                decode_seconds=0.5,
                speaker=fields.get("speakers", {}).get(index),
                detected_language=fields.get("detected", {}).get(index),
            )
            for index, (reference, hypothesis) in enumerate(pairs)
            if index not in gone
        ]
        result = DatasetResult(
            utterances=tuple(utterances),
            skipped=tuple(skipped),
            decoding=DecodingRecord(
                num_beams=fields.get("num_beams", 5),
                language="pt",
                task="transcribe",
                dtype="float32",
            ),
            language=fields.get("language", "pt"),
            manifest_sha256=fields.get("manifest", "0" * 64),
        )
        return EvaluatedDataset(
            evaluation_id=fields.get("evaluation_id"),
            name=name,
            group=fields.get("group", "in_domain"),
            normalizer=fields.get("normalizer", "basic"),
            result=result,
        )

    return make
