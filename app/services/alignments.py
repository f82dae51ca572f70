"""Which words of a reference became which words of a hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jiwer


def align(
    pairs: Sequence[tuple[str, str]], *, unit: Literal["words", "characters"]
) -> list[list[dict[str, str]]]:
    """Return the alignment of each (reference, hypothesis), as stretches in reading order.

    A stretch is `{"type", "reference", "hypothesis"}`; the type is equal, substitute, delete or
    insert.
    """
    if not pairs:
        return []
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    if unit == "characters":
        references, hypotheses = (["".join(t.split()) for t in s] for s in (references, hypotheses))
        output: jiwer.CharacterOutput | jiwer.WordOutput
        output = jiwer.process_characters(references, hypotheses)
        separator = ""
    else:
        output = jiwer.process_words(references, hypotheses)
        separator = " "
    return [
        [
            {
                "type": chunk.type,
                "reference": separator.join(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
                "hypothesis": separator.join(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
            }
            for chunk in chunks
        ]
        for chunks, reference, hypothesis in zip(
            output.alignments, output.references, output.hypotheses, strict=True
        )
    ]
