"""Oracle, property and contract tests of overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.corpora import Text, Windows, make_windows
from ptq_eval.corpora.overlap import overlap


def windows(ids, spec: str) -> Windows:
    ids = np.asarray(ids)
    return make_windows(Text(spec=spec, digest=spec, ids=ids.reshape(-1), name=spec), None, seq_len=ids.shape[1])


def slow(calibration: Windows, evaluation: Windows, n: int) -> tuple[float, float]:
    known = {tuple(w[i : i + n]) for w in calibration.ids.tolist() for i in range(len(w) - n + 1)}
    found = [[tuple(w[i : i + n]) in known for i in range(len(w) - n + 1)] for w in evaluation.ids.tolist()]
    return float(np.mean([any(row) for row in found])), float(np.mean(found))


tables = st.tuples(st.integers(1, 12), st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**16))


@settings(max_examples=150, deadline=None)
@given(left=tables, right=tables, n=st.integers(1, 40))
def test_oracle_sets_of_ngrams(left, right, n):
    def draw(table, spec):
        rows, columns, vocab, seed = table
        return windows(np.random.default_rng(seed).integers(0, vocab, size=(rows, columns)), spec)

    calibration, evaluation = draw(left, "c"), draw(right, "e")
    n_used = min(n, calibration.seq_len, evaluation.seq_len)
    found = overlap(calibration, evaluation, n)
    assert (found.share_of_windows, found.share_of_ngrams) == pytest.approx(slow(calibration, evaluation, n_used))


def test_one_planted_stretch_is_found_exactly():
    rng = np.random.default_rng(0)
    calibration, evaluation = (rng.integers(0, 50_000, size=(40, 128)) for _ in range(2))
    evaluation[7, 20:60] = calibration[3, 80:120]
    evaluation[9, 0:31] = calibration[5, 0:31]  # one token too short to count
    found = overlap(windows(calibration, "c"), windows(evaluation, "e"))
    assert found.share_of_windows == 1 / 40
    assert found.share_of_ngrams == pytest.approx(9 / (40 * 97))
    assert not found.flagged


def test_stretches_do_not_run_over_the_ends_of_windows():
    calibration = windows(np.arange(64).reshape(2, 32), "c")
    evaluation = windows(np.arange(16, 48).reshape(1, 32), "e")
    assert overlap(calibration, evaluation).share_of_ngrams == 0


def test_more_than_one_percent_is_flagged_and_said():
    rng = np.random.default_rng(1)
    calibration, evaluation = (rng.integers(0, 50_000, size=(10, 64)) for _ in range(2))
    evaluation[0] = calibration[0]
    found = overlap(windows(calibration, "c.txt"), windows(evaluation, "e.txt"))
    assert found.flagged
    assert "overlap" in found.message
    assert "10.00%" in found.message
    assert "c.txt" in found.message
    assert "e.txt" in found.message


@pytest.mark.parametrize("same", ["spec", "digest"])
def test_the_same_text_is_flagged_even_where_no_ngram_is_shared(same):
    a = Text(spec="a", digest="x", ids=np.arange(40), name="a")
    b = Text(spec="a" if same == "spec" else "b", digest="x" if same == "digest" else "y", ids=np.arange(40, 80))
    found = overlap(*(make_windows(text, None, seq_len=40) for text in (a, b)))
    assert found.flagged
    assert found.share_of_ngrams == 0
    assert "same text" in found.message
