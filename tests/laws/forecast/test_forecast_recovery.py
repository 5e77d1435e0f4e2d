"""Recovery: simulated runs whose later checkpoints are known; how often the 90 % intervals hold them.

Where slopes wander as a forecast assumes before it knows better, intervals hold what they promise.  Where a simple law
is exactly true they hold more, because a forecast from ten checkpoints cannot know that.
"""

import numpy as np
import pytest

from ptq_eval.laws.forecast.backtest import Ahead, What, backtest
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS
from tests.laws.forecast.support import LAWS, run, wandering

AHEAD = (Ahead.NEXT, Ahead.TWICE, Ahead.FOUR_TIMES)


def stated(law, runs, seed=0, **options):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        found += backtest(run(law, rng, **options), methods={FORECAST: METHODS[FORECAST]}, horizon=8)
    return found


def coverage(statements, what, ahead):
    return 1 - np.mean([s.refuted for s in statements if s.what is what and s.ahead is ahead])


@pytest.mark.slow
def test_intervals_cover_what_they_promise_where_slopes_wander():
    statements = stated(wandering, 16, drift=0.3)
    for ahead in AHEAD:
        for what in (What.LOSS, What.DELTA):
            assert 0.85 <= coverage(statements, what, ahead) <= 0.96, (what, ahead)
    turns = [s.refuted for s in statements if s.what is What.TURN and s.decisive]
    assert len(turns) > 50
    assert np.mean(turns) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_a_law_that_is_true_is_covered(name):
    statements = stated(LAWS[name], 3)
    for ahead in AHEAD:
        for what in (What.LOSS, What.DELTA):
            assert coverage(statements, what, ahead) >= 0.85, (what, ahead)


@pytest.mark.slow
def test_what_is_learned_narrows_the_interval():
    """From six checkpoints of an exact power more is known of the next ones than from four, and more from fourteen."""
    statements = stated(LAWS["power"], 1, n=16, scatter=0.001, relative=0.01)
    next_ones = [s for s in statements if s.ahead is Ahead.NEXT and s.what is What.DELTA and s.bits == 2]
    relative = [(s.high - s.low) / s.value for s in sorted(next_ones, key=lambda s: s.origin_tokens)]
    assert relative[-1] < 0.8 * relative[0]
