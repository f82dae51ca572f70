"""MAPSSWE against a hand-worked example, another segmentation, and NIST's program."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reports.alignments import Alignment, align_words, count_errors
from app.reports.significance import MatchedPairs, mapsswe, segments

SC_STATS = shutil.which("sc_stats", path="/usr/lib/sctk/bin") or shutil.which("sc_stats")
SENTENCES = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


def align(reference: str, *hypotheses: str) -> list[Alignment]:
    return align_words([reference] * len(hypotheses), list(hypotheses))


WORKED = (
    "it was the best of times it was the worst of times it was",
    "its the best of times it is the worst of times or it was",
    "it was the best times it won the test of times it was",
)


def test_an_example_worked_by_hand() -> None:
    """Four segments: "it was" and "its", "of" left out, "was the worst" in two ways, and an "or".

    Errors 2 and 0, 0 and 1, 1 and 2, 1 and 0: differences of mean 1/4 and variance 27/12.
    """
    first, second = align(*WORKED)
    assert list(segments(first, second)) == [(2, 0), (0, 1), (1, 2), (1, 0)]
    result = mapsswe([(first, second)])
    assert (result.segments, result.mean, result.variance) == (4, 0.25, 2.25)
    assert result.z == pytest.approx(1 / 3)  # what sc_stats 1.3 says too, see below
    assert result.p == pytest.approx(0.7388827)


def test_two_words_right_in_both_part_segments_and_one_does_not() -> None:
    reference = "a b c d e f g"
    apart = align(reference, "x b c d e f g", "a b c x e f g")
    assert list(segments(*apart)) == [(1, 0), (0, 1)]
    near = align(reference, "x b c d e f g", "a b x d e f g")
    assert list(segments(*near)) == [(1, 1)]
    inserted = align(reference, "x b c d e f g", "a b and c x e f g")
    assert list(segments(*inserted)) == [(1, 2)]


def test_insertions_at_the_ends_and_empty_references_count() -> None:
    assert list(segments(*align("a b c", "a b c", "x a b c y"))) == [(0, 1), (0, 1)]
    assert list(segments(*align("", "", "x y"))) == [(0, 2)]
    assert list(segments(*align("a b c", "a b c", "a b c"))) == []


def test_without_difference_or_variance_there_is_no_p_value() -> None:
    worse, better = align("a", "b", "a")
    assert mapsswe([(better, better)]) == MatchedPairs(0, 0.0, 0.0, 0.0, 1.0)
    assert mapsswe([(worse, worse)] * 3) == MatchedPairs(3, 0.0, 0.0, 0.0, 1.0)
    assert mapsswe([(worse, better)]) == MatchedPairs(1, 1.0, 0.0, None, None)
    assert mapsswe([(better, worse)] * 40) == MatchedPairs(40, -1.0, 0.0, None, None)


def flags(alignment: Alignment, length: int) -> tuple[list[int], list[int]]:
    """Return the errors at each word and in the gap before each (and after the last)."""
    words, gaps = [0] * length, [0] * (length + 1)
    for chunk in alignment:
        if chunk.type == "insert":
            gaps[chunk.ref_start_idx] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for word in range(chunk.ref_start_idx, chunk.ref_end_idx):
                words[word] += 1
    return words, gaps


def walk(first: Alignment, second: Alignment, length: int) -> list[tuple[int, int]]:
    """Segment by walking word for word, as the test is usually told."""
    (words, gaps), (other_words, other_gaps) = flags(first, length), flags(second, length)
    found, current, good = [], [0, 0], 0
    for position in range(length + 1):
        steps = [(gaps[position], other_gaps[position])]
        if position < length:
            steps.append((words[position], other_words[position]))
        for step, (mine, other) in enumerate(steps):
            if mine or other:
                current, good = [current[0] + mine, current[1] + other], 0
            elif step == 1:
                good += 1
            if good == 2 and current != [0, 0]:
                found.append(tuple(current))
                current = [0, 0]
    return found + ([tuple(current)] if current != [0, 0] else [])


@given(SENTENCES, SENTENCES, SENTENCES)
def test_segments_hold_every_error_once(reference: str, one: str, other: str) -> None:
    first, second = align(reference, one, other)
    found = list(segments(first, second))
    assert found == walk(first, second, len(reference.split()))
    assert found == [(mine, theirs) for theirs, mine in segments(second, first)]
    assert sum(mine for mine, _ in found) == count_errors(first).errors
    assert sum(theirs for _, theirs in found) == count_errors(second).errors


def corpus(seed: int, utterances: int) -> list[tuple[str, str, str]]:
    """Return (reference, hypothesis, hypothesis); all end alike, see `as_sgml`."""
    draw = random.Random(seed)
    words = ["um", "dois", "três", "quatro", "cinco", "seis", "sete", "oito", "nove", "zero"]

    def hear(reference: list[str], rate: float) -> str:
        heard = []
        for word in reference:
            kind = draw.random()
            if kind > rate / 3:
                heard.append(word if kind > 2 * rate / 3 else draw.choice(words))
            if draw.random() < rate / 4:
                heard.append(draw.choice(words))
        return " ".join([*heard, "fim"])

    found = []
    for _ in range(utterances):
        reference = draw.choices(words, k=draw.randint(0, 15))
        texts = hear(reference, 0.2), hear(reference, 0.25)
        found.append((" ".join([*reference, "fim"]), *texts))
    return found


def as_sgml(title: str, texts: list[tuple[str, str]]) -> str:
    """Write our alignments as sclite writes its own.

    sc_stats loses what the second system inserts after the last word; here nobody does that.
    """
    lines = [f'<SYSTEM title="{title}" ref_fname="r" hyp_fname="{title}" creation_date="x" '
             'format="2.4" frag_corr="FALSE" opt_del="FALSE" weight_ali="FALSE" '
             'weight_filename="">', '<SPEAKER id="s">']  # fmt: skip
    for number, (reference, hypothesis) in enumerate(texts):
        (alignment,) = align(reference, hypothesis)
        expected, heard = reference.split(), hypothesis.split()
        marks = []
        for chunk in alignment:
            pairs = max(
                chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
            )
            for step in range(pairs):
                letter = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}[chunk.type]
                ref = "" if letter == "I" else f'"{expected[chunk.ref_start_idx + step]}"'
                hyp = "" if letter == "D" else f'"{heard[chunk.hyp_start_idx + step]}"'
                marks.append(f"{letter},{ref},{hyp}")
        lines += [
            f'<PATH id="(s-{number})" word_cnt="{len(marks)}" sequence="{number}">',
            ":".join(marks),
            "</PATH>",
        ]
    return "\n".join([*lines, "</SPEAKER>", "</SYSTEM>", ""])


# What sc_stats 1.3 (Debian's sctk 2.4.10) said of these corpora.
@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, (428, -0.217, -3.861)), (1, (428, -0.117, -1.926)), (2, (424, -0.269, -4.356))],
)
def test_nists_program_agrees(seed: int, expected: tuple[int, float, float]) -> None:
    texts = corpus(seed, 300)
    result = mapsswe(tuple(align(*triple)) for triple in texts)
    assert result.z is not None
    assert (result.segments, round(result.mean, 3), round(result.z, 3)) == expected
    assert result.p == pytest.approx(math.erfc(abs(expected[2]) / math.sqrt(2)), abs=1e-3)


@pytest.mark.skipif(SC_STATS is None, reason="sctk (apt-get install sctk) is not installed")
@pytest.mark.parametrize("seed", [None, 3, 4, 5])
def test_nists_program_agrees_where_it_is_installed(seed: int | None) -> None:
    texts = [WORKED] if seed is None else corpus(seed, 300)
    sgml = as_sgml("a", [(ref, one) for ref, one, _ in texts])
    sgml += as_sgml("b", [(ref, other) for ref, _, other in texts])
    command = [str(SC_STATS), "-p", "-t", "mapsswe", "-v", "-n", "-"]
    run = subprocess.run(command, input=sgml.encode(), capture_output=True, check=True)
    output = run.stdout
    found = re.search(rb"# segs: (\d+)\).*\(mean: +([-.\d]+)\).*\(Z Stat: +([-.\d]+)\)", output)
    assert found is not None, output
    result = mapsswe(tuple(align(*triple)) for triple in texts)
    assert result.segments == int(found[1])
    assert result.mean == pytest.approx(float(found[2]), abs=6e-4)
    assert result.z == pytest.approx(float(found[3]), abs=6e-4)
