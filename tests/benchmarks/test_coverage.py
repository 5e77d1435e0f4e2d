"""Recovery: the benchmark of coverage tells a right standard error from a wrong one."""

import numpy as np
import pytest

from benchmarks import coverage
from ptq_eval.records import Sample


@pytest.fixture
def cells():
    """Two cells of a text of 40 documents that differ from each other."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), rng.integers(20, 60, 40))
    sample = Sample("first", len(documents), tuple(documents.tolist()))
    per_document = rng.normal(size=(2, 40))[:, documents]
    values = 12.7 * (0.1 + 0.02 * per_document + 0.02 * rng.normal(size=per_document.shape))
    tokens = np.full(len(documents), 127.0)
    return [coverage.Cell("run@1", "rtn", bits, own, tokens, sample) for bits, own in zip((3, 4), values)]


@pytest.mark.slow
def test_the_default_covers_and_neighbours_taken_as_independent_do_not(cells):
    total = len(cells[0].difference)
    size = coverage.sample_size(total)
    rows = [
        row for name, draw in coverage.draws(cells[0].sample, total, size) for row in coverage.judged(name, draw, cells)
    ]
    assert size == 256
    assert len(rows) == 8
    share = {name: np.mean([row[4] for row in rows if row[0] == name]) for name in {row[0] for row in rows}}
    assert 0.87 <= share["default"] <= 0.93
    assert share["stretch, taken as independent"] < 0.6
    assert 0.8 <= share["documents"] <= 0.97
    limits = [claim.limit for claim in coverage.claims("text", size, rows) if claim.limit is not None]
    assert limits == [0.87, 0.93]
