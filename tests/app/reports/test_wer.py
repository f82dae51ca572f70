from __future__ import annotations

import csv
import io
import json

import pytest

from app.reports.rendering import render_table
from app.reports.spreadsheet import render_csv
from app.reports.wer import build_wer

PAIRS = (("bom dia a todos", "bom dia todos"), ("três votos", "3 votos"), ("", "ruído"))


@pytest.fixture
def document(make_dataset) -> dict:
    return build_wer(
        "mrg_1",
        "succeeded",
        [
            make_dataset("parliament", *PAIRS),
            make_dataset("street", ("olá", "olá"), group="out_of_domain", manifest="1" * 64),
        ],
        {
            "base": [
                make_dataset("parliament", *((text, "") for text, _ in PAIRS)),
                make_dataset("street", ("olá", "ola"), group="out_of_domain", manifest="1" * 64),
            ],
            "telephone": [make_dataset("parliament", *((text, text) for text, _ in PAIRS))],
        },
    )


def test_the_document_holds_corpus_level_counts(document: dict) -> None:
    parliament = document["datasets"][0]
    assert {name: parliament[name] for name in ("wer", "reference_words", "utterances")} == {
        "wer": 0.5,
        "reference_words": 6,
        "utterances": 3,
    }
    counted = ("substitutions", "deletions", "insertions", "hits")
    assert [parliament[name] for name in counted] == [1, 1, 1, 4]
    assert parliament["sentence_error_rate"] == 1.0
    assert parliament["characters"]["reference_characters"] == 25
    assert (parliament["audio_seconds"], parliament["rtfx"]) == (6.0, 4.0)
    assert parliament["normalizer"]["name"] == "basic"
    assert parliament["decoding"]["num_beams"] == 5
    assert parliament["warnings"] == {
        "empty_hypotheses": 0,
        "wer_above_one": 0,
        "compression_ratio_above_2.4": 0,
        "audio": [],
        "skipped": [],
    }


def test_the_document_is_json_without_nan(document: dict) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_systems_are_compared_set_by_set(document: dict) -> None:
    first, second = document["datasets"]
    base = first["compared_with"]["base"]
    assert (base["wer"], base["delta"], base["utterances"], base["segments"]) == (1.0, -0.5, 3, 3)
    assert base["mapsswe_p"] is not None
    assert base["probability_of_improvement"] > 0.5
    assert first["compared_with"]["telephone"]["delta"] == 0.5
    assert first["not_compared_with"] == {}
    assert set(second["compared_with"]) == {"base"}
    assert second["not_compared_with"] == {"telephone": "it was not evaluated on this dataset"}
    assert "compared_with" not in document["systems"]["base"]["datasets"][0]
    assert document["systems"]["base"]["averages"]["full"]["macro"] == 1.0
    full = document["averages"]["full"]
    assert (full["macro"], full["micro"], full["datasets"]) == (0.25, 3 / 7, 2)


def test_a_rate_has_an_interval_where_there_is_something_to_draw(document: dict) -> None:
    parliament, street = document["datasets"]
    interval = parliament["ci95"]
    assert interval["low"] <= parliament["wer"] <= interval["high"]
    assert (interval["unit"], interval["units"], interval["replicates"]) == ("utterance", 3, 1000)
    assert street["ci95"] is None  # one utterance
    assert document["averages"]["in_domain"]["ci95"]["low"] == interval["low"]
    assert document["averages"]["full"]["ci95"] is None
    assert document["systems"]["base"]["datasets"][0]["ci95"]["low"] == 1.0


def test_another_normaliser_scores_everything_again(make_dataset) -> None:
    merge = [make_dataset("parliament", *PAIRS[:2])]
    document = build_wer("mrg_1", "succeeded", merge, {"base": merge}, normalizer="portuguese")
    assert document["datasets"][0]["normalizer"]["name"] == "portuguese"
    assert document["datasets"][0]["substitutions"] == 0
    assert document["datasets"][0]["compared_with"]["base"]["delta"] == 0.0


def test_only_utterances_that_both_decoded_count(make_dataset) -> None:
    pairs = (("um dois", "um dois"), ("três quatro", "nada disto"))
    document = build_wer(
        "mrg_1",
        "partial",
        [make_dataset("set", *pairs, skip=(1,))],
        {"base": [make_dataset("set", *pairs)]},
    )
    (dataset,) = document["datasets"]
    base = dataset["compared_with"]["base"]
    assert (base["wer"], base["delta"], base["utterances"]) == (0.0, 0.0, 1)
    assert dataset["status"] == "partial"
    assert dataset["warnings"]["skipped"] == [
        {"index": 1, "audio": "1.wav", "reason": "the file is empty"}
    ]


def test_a_language_without_spaces_is_compared_by_character(make_dataset) -> None:
    merge = [make_dataset("set", ("今天天气", "今天天汽"), language="zh")]
    document = build_wer("mrg_1", "succeeded", merge, {"base": merge})
    assert (document["datasets"][0]["metric"], document["datasets"][0]["cer"]) == ("cer", 0.25)
    base = document["datasets"][0]["compared_with"]["base"]
    assert (base["cer"], base["delta"], base["segments"]) == (0.25, 0.0, 1)
    assert document["averages"]["in_domain"]["micro"] == 0.25


def test_hallucinations_are_counted(make_dataset) -> None:
    pairs = (("olá", "obrigado " * 40), ("bom dia", "..."))
    document = build_wer("mrg_1", "succeeded", [make_dataset("set", *pairs)], {})
    warnings = document["datasets"][0]["warnings"]
    assert (warnings["empty_hypotheses"], warnings["wer_above_one"]) == (1, 1)
    assert warnings["compression_ratio_above_2.4"] == 1


def test_nothing_evaluated_is_a_document_too() -> None:
    document = build_wer("mrg_1", "queued", [], {})
    assert (document["datasets"], document["systems"]) == ([], {})
    assert document["averages"]["full"]["datasets"] == 0
    assert render_table(document)
    assert len(list(csv.DictReader(io.StringIO(render_csv(document))))) == 4


def test_csv_has_a_row_a_system_and_dataset_then_averages(document: dict) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(document))))
    datasets = [(row["system"], row["name"]) for row in rows if row["row"] == "dataset"]
    assert datasets == [
        ("merge", "parliament"),
        ("merge", "street"),
        ("base", "parliament"),
        ("base", "street"),
        ("telephone", "parliament"),
    ]
    first = rows[0]
    assert (float(first["wer"]), first["language"], first["normalizer"]) == (0.5, "pt", "basic")
    assert float(first["ci95_low"]) <= 0.5 <= float(first["ci95_high"])
    assert (first["ci95_unit"], first["delta"]) == ("utterance", "")
    base = next(row for row in rows if (row["system"], row["name"]) == ("base", "parliament"))
    assert float(base["delta"]) == -0.5
    assert float(base["probability_of_improvement"]) > 0.5
    full = next(row for row in rows if (row["system"], row["name"]) == ("merge", "full"))
    assert (float(full["macro"]), full["datasets"]) == (0.25, "2")


def test_the_table_shows_percent_by_system(document: dict) -> None:
    lines = render_table(document, labels=("boosted_tsv_m",)).splitlines()
    assert lines[0].split("  ")[-1].strip() == "All avg"
    cells = {line.split()[0]: line.split()[1:] for line in lines if line[:1].isalpha()}
    assert cells["base"] == ["100.00", "100.00", "100.00", "100.00", "100.00", "100.00"]
    assert cells["telephone"] == ["0.00", "-", "0.00", "-", "-", "-"]
    assert cells["boosted_tsv_m"] == ["50.00", "0.00", "50.00", "0.00", "25.00", "25.00"]
    assert lines[-1] == "- not evaluated, or not comparable with the merge"


def test_the_table_shows_intervals_where_they_fit(document: dict) -> None:
    wide = render_table(document, width=200).splitlines()
    narrow = render_table(document, width=40)
    assert narrow == render_table(document)
    interval = document["datasets"][0]["ci95"]
    shown = f"[{100 * interval['low']:.1f} {100 * interval['high']:.1f}]"
    assert next(line for line in wide if line.startswith("mrg_1")).split("  ").count(shown) == 2
    assert wide[-1] == "[95 % confidence intervals]"
    assert "[" not in narrow
    widest = max(map(len, wide[:-2]))
    assert render_table(document, width=widest).splitlines() == wide
    middle = render_table(document, width=widest - 1)
    assert middle.count("[") == 4  # of datasets alone, and the note


def test_several_merges_share_one_table(document: dict) -> None:
    table = render_table(document, document | {"merge_id": "mrg_2"}, labels=("soup",))
    rows = [line.split()[0] for line in table.splitlines() if line[:1].isalpha()]
    assert rows == ["system", "base", "telephone", "soup", "mrg_2"]


def test_several_detected_languages_are_counted_and_noted(make_dataset) -> None:
    heard = make_dataset("street", *PAIRS, detected={0: "gl", 1: "pt", 2: "pt"})
    alike = make_dataset("parliament", *PAIRS, detected=dict.fromkeys(range(3), "pt"))
    document = build_wer("mrg_1", "succeeded", [heard, alike], {})
    counts = [dataset["detected_languages"] for dataset in document["datasets"]]
    assert counts == [{"pt": 2, "gl": 1}, {"pt": 3}]
    table = render_table(document, labels=["one"], width=100)
    assert "detected languages pt 2, gl 1\n! one on parliament: " in table
    assert table.count("detected languages") == 1
