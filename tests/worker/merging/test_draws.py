"""Masks drawn by position do not depend on how blocks are cut."""

import itertools

import pytest
import torch

from worker.merging.linalg.draws import bernoulli


def test_masks_do_not_depend_on_where_blocks_begin():
    whole = bernoulli(7, 0, 1001, 0.3)
    for edges in ([0, 1, 4, 500, 1001], [0, 333, 1000, 1001]):
        pairs = itertools.pairwise(edges)
        pieces = [bernoulli(7, start, stop - start, 0.3) for start, stop in pairs]
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9])
def test_masks_have_their_probability(probability):
    mask = bernoulli(3, 0, 200_000, probability)
    assert float(mask.float().mean()) == pytest.approx(probability, abs=0.005)
    assert bernoulli(3, 5, 9, 1.0).all()
