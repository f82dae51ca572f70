"""Beam search over a batch, with the same hypotheses as transformers' `generate`."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.evaluation.whisper.decoder import Decoder
from worker.evaluation.whisper.kv_cache import KeyValueCache
from worker.evaluation.whisper.rules import Rules

# Added to the scores of forbidden choices; finite, as in transformers.
_OUT = -1.0e9


class Finished:
    """The best complete hypotheses of an utterance so far, at most one per beam."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.hypotheses: list[tuple[float, list[int]]] = []

    def add(self, score: float, tokens: list[int]) -> None:
        """Add the hypothesis if it is among the best; among equals, the earlier one is kept."""
        self.hypotheses.append((score, tokens))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis[0])
        del self.hypotheses[self.rules.num_beams :]

    def is_over(self, best_possible: float) -> bool:
        """Return whether the search ends, given the best score that any beam can reach."""
        full = len(self.hypotheses) == self.rules.num_beams
        worst = self.hypotheses[-1][0] if full else _OUT
        return (full and self.rules.early_stopping is True) or not best_possible > worst

    def best(self) -> list[int]:
        """Return the tokens of the best hypothesis; none if the logits were NaN."""
        return self.hypotheses[0][1] if self.hypotheses else []


class Beams:
    """The running hypotheses of the unfinished utterances, by slot."""

    def __init__(self, slots: int, prompt_length: int, rules: Rules) -> None:
        """Start with one empty hypothesis per utterance."""
        self.rules = rules
        self.prompt_length = prompt_length
        self.length = 0
        self.owners = list(range(slots))
        self.finished = [Finished(rules) for _ in range(slots)]
        self.scores = torch.zeros(slots, 1)
        self.tokens = torch.empty(slots, 1, 0, dtype=torch.int64)
        self.mask = torch.zeros(slots, 1, prompt_length)

    def extend(self, logits: Tensor) -> list[int]:
        """Extend hypotheses by the best tokens; return the slots whose search continues.

        `logits` is (slots · beams, vocabulary).
        """
        rules, vocabulary = self.rules, logits.shape[1]
        scores = rules.suppress(torch.log_softmax(logits, dim=-1), first=self.length == 0)
        scores = (scores.unflatten(0, self.scores.shape) + self.scores[..., None]).flatten(1)
        # At most one continuation of each beam ends, so at least half of these continue.
        best, index = torch.topk(scores, 2 * rules.num_beams)
        parents, tokens = index // vocabulary, index % vocabulary
        self.length += 1
        ends = tokens == rules.end
        if self.prompt_length + self.length >= rules.max_length:
            ends = torch.ones_like(ends)
        self._finish(best, parents, tokens, ends)
        self._continue(best + ends.to(torch.float32) * _OUT, parents, tokens)
        if self.prompt_length + self.length >= rules.max_length:
            return []
        possible = (self.scores[:, 0] / self._penalty(self._best_length())).tolist()
        return [
            slot
            for slot, owner in enumerate(self.owners)
            if not self.finished[owner].is_over(possible[slot])
        ]

    def select(self, order: list[int]) -> None:
        """Keep only these slots, in this order."""
        self.owners = [self.owners[slot] for slot in order]
        self.scores, self.tokens = self.scores[order], self.tokens[order]
        self.mask = self.mask[order]

    def _best_length(self) -> int:
        """Return the length at which a running hypothesis could have its best score."""
        if self.rules.early_stopping == "never" and self.rules.length_penalty > 0:
            return self.rules.max_length - self.prompt_length
        return self.length

    def _penalty(self, length: int) -> float:
        return float(length**self.rules.length_penalty)

    def _finish(self, best: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor) -> None:
        # Only the best `num_beams` continuations may end; the rest replace them.
        ending = ends[:, : self.rules.num_beams].nonzero().tolist()
        if not ending:
            return
        scores = (best / self._penalty(self.length)).tolist()
        for slot, rank in ending:
            hypothesis = self.tokens[slot, parents[slot, rank]].tolist()
            token = int(tokens[slot, rank])
            if token != self.rules.end:
                hypothesis.append(token)
            self.finished[self.owners[slot]].add(scores[slot][rank], hypothesis)

    def _continue(self, best: Tensor, parents: Tensor, tokens: Tensor) -> None:
        self.scores, chosen = torch.topk(best, self.rules.num_beams)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        rows = torch.arange(len(parents))[:, None]
        self.tokens = torch.cat((self.tokens[rows, parents], tokens[..., None]), dim=2)
        own = torch.full((self.rules.num_beams,) * 2, -torch.inf).fill_diagonal_(0.0)
        own = own.expand(len(parents), -1, -1)
        self.mask = torch.cat((self.mask[rows, parents], own), dim=2)


def search_beams(
    decoder: Decoder, cache: KeyValueCache, prompts: Tensor, rules: Rules
) -> list[list[int]]:
    """Return each utterance's best hypothesis after its prompt, without the end token.

    `prompts` is (slots, length). Finished utterances are removed from the cache.
    """
    beams = Beams(len(prompts), prompts.shape[1], rules)
    running = beams.extend(decoder.read(cache, prompts))
    while running:
        if len(running) < cache.slots:
            beams.select(cache.select(running))
        position = beams.prompt_length + beams.length - 1
        running = beams.extend(decoder.step(cache, beams.tokens[..., -1], position, beams.mask))
    return [finished.best() for finished in beams.finished]
