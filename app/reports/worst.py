"""The utterances with the most errors, for the HTML page."""

from __future__ import annotations

from dataclasses import dataclass

from app.contract.evaluation import ErrorCounts, UtteranceResult
from app.reports.alignments import aligned_texts
from app.reports.scored import ScoredDataset
from app.reports.scoring import UtteranceScore

AT_MOST = 8
# Longest text shown: a hypothesis that loops may be very long.
_LONGEST = 2_000

# An alignment's texts, as `aligned_texts` returns them.
Pieces = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Wrong:
    """An utterance with its errors, and its original texts, shortened if very long."""

    utterance: UtteranceResult
    counts: ErrorCounts
    reference: str
    hypothesis: str
    pieces: Pieces


def worst(scored: ScoredDataset, most: int = AT_MOST) -> list[Wrong]:
    """Return the utterances with the most errors; among equals, the highest rate comes first."""
    pairs = zip(scored.scores, scored.evaluated.result.utterances, strict=True)
    wrong = [(score, utterance) for score, utterance in pairs if score.counts(scored.metric).errors]
    wrong.sort(key=lambda pair: _badness(pair[0].counts(scored.metric)), reverse=True)
    return [
        Wrong(
            utterance,
            score.counts(scored.metric),
            _short(utterance.reference),
            _short(utterance.hypothesis),
            pieces_of(scored, score),
        )
        for score, utterance in wrong[:most]
    ]


def pieces_of(scored: ScoredDataset, score: UtteranceScore) -> Pieces:
    """Return an alignment's pieces up to a readable length, with a mark where they are cut."""
    pieces, length = [], 0
    for piece in aligned_texts(score.reference, score.hypothesis, score.alignment, scored.metric):
        length += len(piece["reference"]) + len(piece["hypothesis"])
        pieces.append(
            {
                **piece,
                "reference": _short(piece["reference"]),
                "hypothesis": _short(piece["hypothesis"]),
            }
        )
        if length > _LONGEST:
            pieces.append({"type": "equal", "reference": "…", "hypothesis": "…"})
            break
    return tuple(pieces)


def _badness(counts: ErrorCounts) -> tuple[int, float]:
    return counts.errors, counts.rate if counts.rate is not None else float("inf")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
