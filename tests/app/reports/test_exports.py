"""Scored utterances in other tools' formats, where names are unusual."""

from __future__ import annotations

from app.reports.exports import EXPORTS


def test_a_speaker_of_punctuation_alone_still_has_a_column_in_stm() -> None:
    entry = {
        "audio": "speech/a.wav",
        "channel": None,
        "speaker": "()",
        "dataset": "street",
        "offset_seconds": 1.5,
        "audio_seconds": 2.0,
        "normalized": {"hypothesis": "bom dia"},
    }
    line = EXPORTS["stm"].write([entry], "hypothesis")
    assert line == "speech/a 1 _ 1.500 3.500 bom dia\n"
