from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from app.reports.charts import ChartPoint
from app.reports.layout import content_security_policy
from app.reports.page import Subject, render_page
from app.reports.rate_table import rate_rows
from app.reports.rendering import render_table
from app.reports.spreadsheet import render_csv
from app.reports.wer import ScoredSystems, document_of, score_systems
from app.reports.worst import worst

HOSTILE = "<script>alert('x')</script>"
PAIRS = (
    ("bom dia a todos", "bom dia todos"),
    ("três votos", "quatro votos"),
    ("olá", "olá mundo"),
    (HOSTILE, HOSTILE + " two"),
)
VOID = {"meta", "br", "rect", "line", "circle", "polygon"}


class Outline(HTMLParser):
    """Notes tags, attributes and text; fails where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def subject(**changes: Any) -> Subject:
    merge = {
        "id": "mrg_1", "name": f"name {HOSTILE}", "status": "succeeded", "method": "soup",
        "parameters": {"scaling_coefficient": 1.0}, "rules": [], "seed": 0, "output": {},
        "base": {
            "name": "base", "uri": "file:///b", "resolved": None, "sha256": "b" * 64, "weight": None
        },
        "checkpoints": [
            {"name": "one", "uri": "file:///1", "resolved": None, "sha256": None, "weight": 1.0}
        ],
        "artifacts": [], "warnings": [], "finished_at": None,
    }  # fmt: skip
    labels = {"merge": "soup λ=1", "base": "base", "one": f"one {HOSTILE}"}
    return Subject(merge, labels, [{"note": HOSTILE}], changes.get("peers", []), "0.1")


@pytest.fixture
def scored(make_dataset) -> ScoredSystems:
    def sets(*pairs: tuple[str, str], **fields: Any) -> list:
        return [
            make_dataset("parliament", *pairs, **fields),
            make_dataset("street", *pairs, group="out_of_domain", manifest="1" * 64),
        ]

    perfect = [(text, text) for text, _ in PAIRS]
    others = {"base": sets(*perfect), "one": sets(*PAIRS, num_beams=1)[:1]}
    return score_systems(sets(*PAIRS, skip=(1,)), others)


def page_of(scored: ScoredSystems, **changes: Any) -> str:
    document = document_of("mrg_1", "partial", scored)
    failure = {"message": f"parliament: {HOSTILE}"}
    gate = {"passed": False, "failures": [failure]}
    document |= {"evaluation": {"id": "evl_1", "gate": gate}}
    return render_page(document, scored, subject(**changes))


def test_html_in_names_and_transcripts_is_escaped(scored: ScoredSystems) -> None:
    page = page_of(scored, peers=[ChartPoint(HOSTILE, 0.1, 0.2, "other")])
    outline = Outline(page)
    assert "script" not in outline.tags
    assert outline.text.count(HOSTILE) >= 6  # name, column, gate, reference, hypothesis, point


def test_the_page_needs_nothing_but_itself(scored: ScoredSystems) -> None:
    page = page_of(scored)
    outline = Outline(page)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(outline.tags)
    names = {name for name, _ in outline.attributes}
    assert not {"src", "srcset", "style", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    links = [value for name, value in outline.attributes if name == "href"]
    assert all(value.startswith("#") for value in links)
    assert "url(" not in page
    assert "@import" not in page


def test_players_get_audio_from_the_service_once_somebody_listens(make_dataset) -> None:
    pairs = [("um", "dois"), ("três", "quatro"), ("cinco", "seis")]
    dataset = make_dataset(f"a/b&c {HOSTILE}", *pairs, evaluation_id="evl_1")
    changed = ({"offset_seconds": 61.5}, {"audio": "1.FLAC"}, {"audio": "1.sph"})
    utterances = [
        one.model_copy(update=change)
        for one, change in zip(dataset.result.utterances, changed, strict=True)
    ]
    result = dataset.result.model_copy(update={"utterances": tuple(utterances)})
    outline = Outline(page_of(score_systems([dataset.model_copy(update={"result": result})], {})))
    assert outline.tags.count("audio") == 2  # browsers do not play the third
    assert outline.attributes.count(("preload", "none")) == 2
    first, second = (urlsplit(str(url)) for name, url in outline.attributes if name == "src")
    for index, url in enumerate((first, second)):
        assert (url.scheme, url.netloc, url.path) == ("", "", "wer/audio")
        assert dict(parse_qsl(url.query)) == {
            "dataset": dataset.name, "index": str(index), "evaluation": "evl_1",
        }  # fmt: skip
    assert (first.fragment, second.fragment) == ("t=61.500,63.500", "")


def test_the_page_says_what_the_merge_changed_and_how_it_errs(make_dataset) -> None:
    mine = [("bom dia", "bom"), ("olá mundo", "olá mundo"), ("três", "seis")]
    base = [("bom dia", "bom dia"), ("olá mundo", "ola"), ("três", "seis")]
    scored = score_systems(
        [make_dataset("parliament", *mine, speakers={0: "ana", 1: "rui"})],
        {"base": [make_dataset("parliament", *base)]},
    )
    text = " ".join(re.sub("<[^>]*>", " ", page_of(scored)).split())
    assert "Against base: 1 worse, 1 better, of 3 utterances" in text
    assert "+1 error (0 → 1)" in text
    assert "−2 errors (2 → 0)" in text
    assert "Substituted Word Merge Base três → seis 1 1" in text
    assert (
        "By duration Duration Utt. Words Merge Base Diff. 2 to 5 s 3 5 40.00 60.00 −20.00" in text
    )
    assert "By speaker Speaker Utt. Words Merge Base Diff. ana 1 2 50.00 0.00 +50.00 rui" in text


def test_every_cell_of_the_rates_has_its_columns_name_for_narrow_screens(
    scored: ScoredSystems,
) -> None:
    page = page_of(scored)
    [table] = re.findall(r'<table class="stacking">.*?</table>', page, re.DOTALL)
    header = re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", table)[1:]
    for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]:
        assert re.findall(r'data-label="([^"]*)"', row) == header


def test_the_policy_allows_this_style_sheet_and_nothing_else(scored: ScoredSystems) -> None:
    [style] = re.findall(r"<style>(.*?)</style>", page_of(scored), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = content_security_policy()
    assert policy.startswith("default-src 'none';")
    assert f"style-src 'sha256-{digest}';" in policy
    assert "media-src 'self';" in policy
    assert "unsafe" not in policy


def test_tables_and_charts_have_names_for_those_who_hear_them(scored: ScoredSystems) -> None:
    outline = Outline(page_of(scored))
    assert outline.tags.count("table") == outline.tags.count("caption")
    assert ("lang", "en") in outline.attributes
    assert outline.tags.count("svg") == outline.attributes.count(("role", "img")) == 3
    scopes = [value for name, value in outline.attributes if name == "scope"]
    assert scopes.count("col") >= 4
    assert outline.tags.count("th") == len(scopes)
    ids = [value for name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {value for name, value in outline.attributes if name == "aria-labelledby"}
    assert named <= set(ids)


def test_alignments_have_signs_beside_colours(scored: ScoredSystems) -> None:
    text = " ".join(Outline(page_of(scored)).text.split())
    assert "bom dia deleted: −a todos" in text
    assert "olá inserted: +mundo" in text
    assert "substituted: três→quatro votos" in text
    for kind in ("sub", "gone", "new"):
        assert f'class="{kind}"' in page_of(scored)


def test_the_best_of_a_row_is_marked_and_the_base_is_tested(make_dataset) -> None:
    right = [(f"um dois três {n}", f"um dois três {n}") for n in range(30)]
    wrong = [(text, "um dois") for text, _ in right]
    scored = score_systems(
        [make_dataset("set", *right)],
        {"base": [make_dataset("set", *wrong)], "one": [make_dataset("set", *wrong, num_beams=1)]},
    )
    [row], averages = rate_rows(document_of("mrg_1", "succeeded", scored), scored)
    merge, base, one = row.cells
    assert (merge.rate, merge.is_best, base.is_best) == (0.0, True, False)
    assert (one.rate, one.is_best) == (None, False)  # decoded otherwise: not comparable
    assert row.difference.delta == -0.5
    # 30 times the same difference: there is nothing to test by.
    assert (row.difference.p, row.difference.verdict) == (None, "open")
    assert {average.title for average in averages} == {"ID avg", "Full avg", "All avg"}
    varied = [(text, "um dois" if n % 2 else text) for n, (text, _) in enumerate(right)]
    scored = score_systems([make_dataset("set", *right)], {"base": [make_dataset("set", *varied)]})
    [row], _ = rate_rows(document_of("mrg_1", "succeeded", scored), scored)
    assert (row.difference.p, row.difference.verdict) == (None, "open")
    mixed = [(text, ("um dois", "um dois três")[n % 2]) for n, (text, _) in enumerate(right)]
    scored = score_systems([make_dataset("set", *right)], {"base": [make_dataset("set", *mixed)]})
    document = document_of("mrg_1", "succeeded", scored)
    [row], _ = rate_rows(document, scored)
    assert row.difference.verdict == "better"
    page = render_page(document | {"evaluation": {"id": None, "gate": None}}, scored, subject())
    assert "p &lt; 0.001" in page
    assert "significantly better than the base" in page


def test_what_is_not_comparable_has_no_average_no_star_and_no_point(make_dataset) -> None:
    def sets(heard: str, **fields: Any) -> list:
        return [
            make_dataset("near", ("um dois", heard), **fields),
            make_dataset("far", ("um dois", heard), group="out_of_domain", manifest="1" * 64),
        ]

    others = {
        "base": sets("um dois três"),
        "unlike": sets("um dois", num_beams=1),
        "absent": sets("um dois")[1:],
        "renamed": [make_dataset("other", ("um dois", "um dois")), sets("um dois")[1]],
        "renormalised": sets("um dois", normalizer="none"),
    }
    scored = score_systems(sets("um"), others)
    document = document_of("mrg_1", "succeeded", scored)
    rows, averages = rate_rows(document, scored)
    shown = {one.title: {cell.system: cell for cell in one.cells} for one in (*rows, *averages)}
    for title in ("near", "ID avg", "Full avg", "All avg"):
        for system in ("unlike", "absent", "renormalised"):
            cell = shown[title][system]
            assert (cell.rate, cell.low, cell.is_best) == (None, None, False)
        assert shown[title]["renamed"].is_best
    assert shown["OOD avg"]["absent"].is_best
    left_out = document["systems"]["unlike"]["averages"]
    assert left_out["full"]["not_comparable"] == ["near"]
    assert (left_out["in_domain"]["micro"], left_out["in_domain"]["datasets"]) == (None, 0)
    assert left_out["out_of_domain"]["macro"] == 0.0
    everyone = ("merge", *others)
    told = replace(subject(), labels={name: f"called {name}" for name in everyone})
    page = render_page(document | {"evaluation": {"id": None, "gate": None}}, scored, told)
    [points] = re.findall(r"The chart's points.*?</table>", page, re.DOTALL)
    assert [name for name in everyone if f"called {name}" in points] == ["merge", "base", "renamed"]
    # The terminal and the spreadsheet.
    lines = {line.split()[0]: line.split() for line in render_table(document).splitlines()}
    assert lines["unlike"][1:] == ["-", "0.00", "-", "-", "0.00", "-", "-"]
    assert "not comparable" in render_table(document)
    csv_rows = list(csv.DictReader(io.StringIO(render_csv(document))))
    full = next(one for one in csv_rows if (one["system"], one["name"]) == ("unlike", "full"))
    assert (full["macro"], full["not_compared"]) == ("", "near")
    near = next(one for one in csv_rows if (one["system"], one["name"]) == ("unlike", "near"))
    assert near["not_compared"] == "it was decoded with num_beams 1 instead of 5"


def test_until_the_merge_has_a_result_averages_are_of_what_there_is(make_dataset) -> None:
    scored = score_systems([], {"base": [make_dataset("set", ("um dois", "um"))]})
    document = document_of("mrg_1", "running", scored)
    assert document["systems"]["base"]["averages"]["all"]["macro"] == 0.5


def test_the_worst_utterances_come_first_and_none_is_without_error(make_dataset) -> None:
    pairs = [
        ("um dois três quatro", "um"),
        ("um", "um"),
        ("um dois", "três"),
        ("um dois três", "três"),
    ]
    scored = score_systems([make_dataset("set", *pairs)], {}).merge[0]
    found = worst(scored)
    assert [(one.utterance.index, one.counts.errors) for one in found] == [(0, 3), (2, 2), (3, 2)]
    assert len(worst(scored, 1)) == 1


def test_a_transcript_without_end_is_cut(make_dataset) -> None:
    scored = score_systems([make_dataset("set", ("um", "um " * 30_000))], {})
    document = document_of("mrg_1", "succeeded", scored) | {
        "evaluation": {"id": None, "gate": None}
    }
    assert len(render_page(document, scored, subject())) < 60_000


def test_warnings_and_uncompared_systems_are_listed(scored: ScoredSystems) -> None:
    text = " ".join(Outline(page_of(scored)).text.split())
    assert "1.wav: the file is empty" in text
    assert "it was decoded with num_beams 1 instead of 5" in text
    assert "0" * 64 in text
    assert "openai/whisper" in text


def test_a_language_without_spaces_is_shown_by_character(make_dataset) -> None:
    scored = score_systems([make_dataset("set", ("今天天气", "今天天汽"), language="zh")], {})
    document = document_of("mrg_1", "succeeded", scored) | {
        "evaluation": {"id": None, "gate": None}
    }
    text = Outline(render_page(document, scored, subject())).text
    assert "今天天substituted: 气→汽" in text
    assert "CER" in text


def test_nothing_evaluated_is_a_page_too() -> None:
    scored = score_systems([], {})
    document = document_of("mrg_1", "queued", scored) | {"evaluation": {"id": None, "gate": None}}
    assert "Nothing has been decoded yet." in Outline(render_page(document, scored, subject())).text
