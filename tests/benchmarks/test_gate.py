"""Recovery: the benchmark of the gate tells a sound test from one that is not."""

import numpy as np
import pytest

from benchmarks import gate
from ptq_eval.records import Sample
from ptq_eval.results.gate.decision import Evidence
from ptq_eval.sampling import design_of


@pytest.fixture
def cells():
    """Four cells of a text of 240 windows, each with six draws that differ by luck and from window to window."""
    rng = np.random.default_rng(0)
    damage = 1 + 0.3 * rng.normal(size=240)
    return [
        gate.Cell(
            "run@1", method, bits,
            size * (damage + 0.2 * rng.normal(size=(6, 240))) + luck * rng.normal(size=(6, 1)),
            np.full(6, luck), 0.0, damage / damage.mean(),
        )
        for method in ("gptq", "awq") for bits, size, luck in ((3, 0.1, 0.004), (4, 0.02, 0.001))
    ]  # fmt: skip


def test_changes_without_effect_have_exactly_the_same_mean_on_the_text(cells):
    rng = np.random.default_rng(1)
    for name in ("equal on the text", "other method"):
        found = gate.grid(cells, gate.CHANGES[name], 60, rng)
        for old, new in zip(found.old, found.new):
            assert new.mean() == pytest.approx(old.mean(), abs=1e-12)
            assert not np.allclose(old, new)
        assert np.array_equal(found.design.units, design_of(Sample("spread", 240), 60).units)


def test_a_worsening_has_its_size_on_the_whole_text(cells):
    found = gate.grid(cells, gate.CHANGES["equal on the text"], 240, np.random.default_rng(2))
    for one in found.evidence("model", 0.03):
        assert one.worsening == pytest.approx(0.03)
        assert one.chance == 0
    assert all(one.chance > 0 for one in found.evidence("method", 0.03))


@pytest.mark.slow
def test_false_alarms_of_an_error_that_is_too_small_are_seen(cells, monkeypatch):
    claims = {claim.what: claim for claim in gate.false_alarms("text", cells, 60, 150)}
    sound = [claim.value for what, claim in claims.items() if "equal on the text" in what]
    assert max(sound) <= 0.06

    def half(base, new, tokens, design):
        found = of_losses(base, new, tokens, design)
        return Evidence(found.worsening, found.error / 2, found.df, found.windows, share=found.share)

    of_losses = gate.of_losses
    monkeypatch.setattr(gate, "of_losses", half)
    wrong = [c.value for c in gate.false_alarms("text", cells, 60, 150) if "equal on the text, judge model" in c.what]
    assert max(wrong) > 0.1


@pytest.mark.slow
def test_power_is_stated_as_it_is_and_worsenings_are_caught(cells):
    rows = list(gate.power_rows(cells, 60, 25, "model"))
    assert {row[0] for row in rows} == {"model"}
    assert np.mean([abs(row[4] - row[5]) for row in rows]) < 0.05
    caught, gap, mean = gate.power_claims("text", "model", rows)
    assert caught.value >= 0.95
    assert mean.value <= gap.value
    assert rows[-1][4] == 1.0
