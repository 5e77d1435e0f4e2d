"""Oracle: differences between ways to end a run, from losses made here."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ptq_eval.errors import DataFileError
from ptq_eval.results.columns import COLUMNS
from ptq_eval.results.endings import LEVEL, Decision, Ending, least, read_records, record_of, rows
from ptq_eval.results.points import Losses

N = 40
ENDINGS = [Ending("r@1", "trunk", "trunk", 1), Ending("r@1", "average:2", "average:2", 1, "trunk", {"checkpoints": 2})]


def results(losses, *, bits=(None, 4), tokens=(), **columns):
    """{run: {bits: losses}} of models at step 1, as results have them; `tokens` by run, `columns` for all rows."""
    found, windows = [], {}
    for run, own in losses.items():
        for width in bits:
            row = dict.fromkeys(COLUMNS)
            row |= {"run": run, "step": 1, "tokens": dict(tokens).get(run, 100), "key": f"{run} {width}", **columns}
            row |= {"quantizer": "none" if width is None else "rtn", "bits": width, "options": "{}"}
            after, before = own[width], own[None]
            if width is not None:
                row |= {"delta": (after - before).mean(), "delta_se": 0.01}
            found.append(row)
            windows[row["key"]] = Losses(after, before)
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    return SimpleNamespace(frame=frame, windows=windows, run={"fixed": {"seq_len": 8}})


def made(shift=0.1, noise=0.01, seed=0, before=0.0):
    rng = np.random.default_rng(seed)
    hard = 3 + rng.normal(size=N)
    trunk = {None: hard, 4: hard + 0.5 + noise * rng.normal(size=N)}
    other = {None: hard + before + noise * rng.normal(size=N), 4: trunk[4] - shift + noise * rng.normal(size=N)}
    return {"trunk": trunk, "average:2": other}


def test_a_difference_is_that_of_paired_windows():
    losses = made()
    found = {(row["ending"], row["bits"]): row for row in rows(results(losses), ENDINGS)}
    for width in (None, 4):
        apart = losses["average:2"][width] - losses["trunk"][width]
        row = found["average:2", width]
        assert row["difference"] == pytest.approx(apart.mean(), rel=1e-12)
        assert row["error"] == pytest.approx(apart.std(ddof=1) / math.sqrt(N), rel=1e-12)
        assert row["loss"] == pytest.approx(losses["average:2"][width].mean())
    four = found["average:2", 4]
    deltas = [losses[run][4] - losses[run][None] for run in ("average:2", "trunk")]
    assert four["delta_difference"] == pytest.approx((deltas[0] - deltas[1]).mean())
    assert four["delta_error"] == pytest.approx((deltas[0] - deltas[1]).std(ddof=1) / math.sqrt(N))
    assert four["decision"] == Decision.BETTER
    assert "decision" not in found["trunk", 4]
    assert found["average:2", None]["delta"] is None
    assert four["checkpoints"] == 2


def test_p_is_two_sided_and_adjusted_over_the_table():
    losses = made(shift=0.003)
    found = [row for row in rows(results(losses), ENDINGS) if row["ending"] != "trunk"]
    alone = [
        float(stats.ttest_rel(losses["average:2"][row["bits"]], losses["trunk"][row["bits"]]).pvalue) for row in found
    ]
    small, large = sorted(range(2), key=lambda i: alone[i])
    assert found[small]["p"] == pytest.approx(min(1, 2 * alone[small]))
    assert found[large]["p"] == pytest.approx(min(1, max(2 * alone[small], alone[large])))


def test_chance_of_rounding_is_part_of_the_error():
    losses = made(shift=0.05)
    one = [r for r in rows(results(losses, rounding_sd=0.1, numerics_sd=0.0), ENDINGS) if r["ending"] != "trunk"]
    full, four = one
    assert full["chance"] == 0
    assert four["chance"] == pytest.approx(math.hypot(0.1, 0.1))
    assert four["decision"] == Decision.UNDECIDED
    plain = [r for r in rows(results(losses), ENDINGS) if r["bits"] == 4 and r["ending"] != "trunk"]
    assert plain[0]["decision"] == Decision.BETTER


def test_equal_models_are_the_same_and_worse_ones_worse():
    losses = made()
    same = {"trunk": losses["trunk"], "average:2": losses["trunk"]}
    assert {row.get("decision") for row in rows(results(same), ENDINGS)} == {None, Decision.SAME}
    worse = [row.get("decision") for row in rows(results(made(shift=-0.2)), ENDINGS)]
    assert Decision.WORSE in worse


@pytest.mark.slow
def test_equal_models_are_rarely_called_different():
    called = 0
    for seed in range(300):
        found = rows(results(made(shift=0.0, seed=seed)), ENDINGS)
        called += any(row.get("decision") in (Decision.BETTER, Decision.WORSE) for row in found)
    assert called / 300 < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 300)


def test_models_that_have_seen_other_tokens_are_not_compared():
    with pytest.raises(ValueError, match="has seen 90 tokens"):
        rows(results(made(), tokens={"average:2": 90}), ENDINGS)


def test_the_least_loss_of_each_configuration():
    found = rows(results(made(shift=-0.2, before=-0.3)), ENDINGS)
    assert {row["bits"]: row["ending"] for row in least(found)} == {None: "average:2", 4: "trunk"}


def test_a_record_has_its_settings():
    record = record_of("average", results(made()), ENDINGS, start={"step": 3})
    assert (record["kind"], record["level"], record["start"]) == ("average", LEVEL, {"step": 3})
    assert record["settings"] == {"seq_len": 8}
    assert len(record["rows"]) == 4


def test_the_detectable_difference_is_decided_four_times_of_five():
    """Two endings that differ by it, drawn again and again."""
    losses = made(shift=0.004, noise=0.01)
    [four] = [r for r in rows(results(losses, bits=(4,)), ENDINGS) if r["ending"] != "trunk"]
    truth, error = four["detectable"], four["error"]
    rng, decided, draws = np.random.default_rng(1), 0, 4000
    samples = truth + error * math.sqrt(N) * rng.standard_normal((draws, N))
    for one in samples:
        p = stats.ttest_1samp(one, 0).pvalue
        decided += p <= LEVEL and abs(one.mean()) >= 2 * one.std(ddof=1) / math.sqrt(N)
    assert decided / draws == pytest.approx(0.8, abs=0.03)


def test_a_record_is_read_again(tmp_path):
    record = record_of("probe", results(made()), ENDINGS)
    (tmp_path / "probe.json").write_text(json.dumps(record), encoding="utf-8")
    assert read_records(tmp_path) == {str(tmp_path / "probe.json"): json.loads(json.dumps(record))}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0, "rows": []}', '{"format": 1, "rows": [{}]}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "average.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError, match="record of endings"):
        read_records(tmp_path)
    with pytest.raises(DataFileError, match="no record of endings"):
        read_records(tmp_path / "nowhere")
