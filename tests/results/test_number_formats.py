"""Recovery: floats against integers of equal bits in results/precision, on a table made here."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from results.precision import number_formats

OWN, SLOPE = {"fp8_e4m3": math.log(3.0), "mxfp4": math.log(0.8)}, -0.1


def table():
    """KL falls by a factor of four a bit; floats differ by a factor, which changes with log2 of D/N."""
    rows = []
    for params, seed, part, ratio in product((1e4, 4e4), (0, 1, 2), ("trunk", "annealed"), (5, 20, 40, 80)):
        scatter = 0.1 * (seed - 1)
        about = {"params": params, "seed": seed, "part": part, "tokens_per_param": float(ratio)}
        for grouping, scale in (("groups", 1.0), ("blocks", 0.5)):
            own = [(f"int{bits}_narrow", bits, bits + scale, 0.0) for bits in range(3, 9)]
            name, bits, stored = ("fp8_e4m3", 8, 9.0) if grouping == "groups" else ("mxfp4", 4, 4.25)
            own.append((name, bits, stored, OWN[name] + scatter + SLOPE * math.log2(ratio / 40)))
            for name, bits, stored, log in own:
                kl = math.exp(log - stored * math.log(4)) * seed_factor(seed)
                rows.append({
                    **about, "grouping": grouping, "format": name, "bits": bits, "bits_per_weight": stored, "kl": kl,
                    "delta": 2 * kl,
                })  # fmt: skip
    return pd.DataFrame(rows)


def seed_factor(seed):
    return 1.0 + 0.3 * seed


@pytest.fixture(scope="module")
def found():
    return number_formats.effects(number_formats.compared(table()))


def test_factors_at_equal_bits_are_recovered(found):
    for row in found.to_dict("records"):
        assert row["runs"] == 6
        assert row["ratio"] == pytest.approx(OWN[row["format"]], abs=1e-6)  # D/N 20 to 80 about 40
        assert row["ratio_scatter"] == pytest.approx(np.std([-0.1, 0, 0.1] * 2, ddof=1), rel=1e-6)
        assert row["ratio_decided"]
        assert row["slope"] == pytest.approx(SLOPE, rel=1e-6)


def test_differences_of_delta_need_an_integer_of_just_these_bits(found):
    by_format = found.set_index(["format", "part"])["difference"]
    assert by_format["fp8_e4m3"].notna().all()
    assert by_format["mxfp4"].isna().all()


def test_the_figure_shows_every_format():
    shown = number_formats.shown(table())
    assert set(shown["format"]) == set(OWN)
    assert len(number_formats.draw(shown).axes) == 2
