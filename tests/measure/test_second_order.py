"""Oracle: the spread of the second order over roundings, against the whole Fisher matrix of a small model."""

import pytest
import torch

from ptq_eval.measure.gradients import drawn, gradients
from ptq_eval.measure.second_order import share
from tests.theory.support import build, windows


def fisher_of_range(model, ids, draws):
    """F with rows and columns multiplied by the range of each weight's row: [weights, weights], from one draw each."""
    generator, total = torch.Generator().manual_seed(5), 0.0
    names = list(model.linears())
    ranges = {name: model.weight(name).amax(1) - model.weight(name).amin(1) for name in names}
    for window in ids:
        for found in gradients(model, window[None].long(), lambda probability: drawn(probability, generator), draws):
            scores = [(found[name][1].T @ found[name][0]) * ranges[name][:, None] for name in names]
            rows = torch.cat([score.flatten() for score in scores])[None].double()
            total = total + rows.T @ rows
    return total / (draws * len(ids) * (ids.shape[1] - 1))


@pytest.mark.slow
def test_the_share_is_that_of_a_quadratic_form_in_normal_errors():
    model = build()
    matrix = fisher_of_range(model, windows(500, seed=1), draws=6)
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(4000, len(matrix), generator=generator, dtype=torch.float64)
    forms = ((errors @ matrix) * errors).sum(1)
    expected = float(forms.std() / forms.mean())
    found = share(model, windows(400, seed=2))
    assert abs(found / expected - 1) < 0.15


def test_the_share_is_the_same_at_every_call():
    model, ids = build(), windows(8)
    assert 0 < share(model, ids) == share(model, ids) < 2


def test_labels_are_drawn_with_their_probability():
    """A label of probability 0 never, the others as often as they should be, wherever the cumulated sum is rounded."""
    probability = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2 - 1e-4, 1e-4, 0.0]).expand(2, 50_000, -1)
    counts = drawn(probability, torch.Generator().manual_seed(0)).flatten().bincount(minlength=7) / 100_000
    assert counts[[0, 2, 6]].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(counts, probability[0, 0], atol=0.006)
