"""Property, oracle and recovery: a measurement that may end before the last window, and the table made of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ptq_eval
from ptq_eval.early_stop import StopRule
from ptq_eval.errors import OptionError, OutputMismatchError
from ptq_eval.measure.sweep import sweep
from ptq_eval.records import Checkpoint, Measurement, Sample, Scheme, Trial
from ptq_eval.results.store import Store
from ptq_eval.results.table import extended, tabulate
from ptq_eval.sampling import design_of, standard_error
from tests.support.steps import planned

TOKENS = 100
LOOSE = 0.5
"""With the random models of these tests, a precision that some variants reach after a few looks and others never."""


@given(windows=st.integers(2, 500), fewest=st.integers(2, 80), every=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_window_has_its_place_in_the_order(windows, fewest, every, seed):
    rule = StopRule(0.02, fewest=fewest, every=every, seed=seed)
    assert sorted(rule.order(windows)) == list(range(windows))
    assert rule.order(windows) == rule.order(windows)
    chunks = rule.chunks(windows)
    assert sum(chunks) == windows
    assert chunks[0] == min(fewest, windows)
    assert all(0 < chunk <= every for chunk in chunks[1:])


def test_the_rule_is_that_of_the_paired_error():
    rng = np.random.default_rng(0)
    before = 3 * TOKENS + 40 * rng.standard_normal(400)
    after = before + TOKENS * (0.2 + 0.05 * rng.standard_normal(400))
    error = ((after - before) / TOKENS)[:64].std(ddof=1) / 8
    for precision, floor in ((error / 0.19, 0), (0.0, error * 1.01), (error / 0.21, 0), (0.0, error * 0.99)):
        rule = StopRule(precision, floor)
        mean = ((after - before) / TOKENS)[:64].mean()
        assert rule.settled(before.tolist(), after[:64].tolist(), TOKENS) == (error <= max(precision * mean, floor))
    assert not StopRule(0.9).settled([1.0], [9.0], 1), "one window says nothing about its error"
    assert StopRule(0.01).settled([1.0, 2.0], [1.0, float("nan")], 1), "more windows cannot help"


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.3, 0.01, 0.0, -0.004])
def test_recovery_the_estimate_is_within_two_errors_nearly_always(truth):
    """400 measurements of a known δ, each ended by the rule; nominal coverage is 95 %, looking again costs a little."""
    rng, rule, hits, used = np.random.default_rng(1), StopRule(0.02), 0, 0
    for _ in range(400):
        difference = truth + (0.02 + 0.3 * abs(truth)) * rng.standard_normal(2048)
        before, after, n = [3.0] * 2048, (3.0 + difference).tolist(), 0
        for chunk in rule.chunks(2048):
            n += chunk
            if rule.settled(before, after[:n], 1):
                break
        used += n
        error = difference[:n].std(ddof=1) / np.sqrt(n)
        hits += abs(difference[:n].mean() - truth) <= 2 * error
    assert hits / 400 >= 0.90
    assert used / 400 < 2048 / 2


@settings(deadline=None)
@given(st.integers(4, 60), st.integers(2, 60), st.integers(0, 100), st.sampled_from(["spread", "first", "crops"]))
def test_a_sample_spread_over_all_windows_keeps_its_mean_and_error(total, n, seed, selection):
    n = min(n, total)
    rng = np.random.default_rng(seed)
    sample, windows = rng.normal(size=n), sorted(rng.permutation(total)[:n])
    design = design_of(Sample(selection, 4 * total), total)
    full, error = extended(sample, windows, design), standard_error(sample, design.at(windows))
    assert full.mean() == pytest.approx(sample.mean(), abs=1e-12)
    if error == error:  # all in one stretch of neighbours, the sample has none
        assert standard_error(full, design) == pytest.approx(error, rel=1e-9)
    if n == total:
        assert np.allclose(full, sample)


CHECKPOINT = Checkpoint("run", 1, 1000, 10, weights_sha="w")
FULL = Trial(CHECKPOINT, "digest", "protocol", stop=StopRule(0.02).to_dict(), sample=Sample("crops"))


def pair(n, total=256, seed=0):
    """(full-precision record, record of n of its windows, the loss after quantization of every window)."""
    rng = np.random.default_rng(seed)
    before = TOKENS * (3 + 0.4 * rng.standard_normal(total))
    after = before + TOKENS * 0.1 + 0.1 * (before - 3 * TOKENS) + 3 * rng.standard_normal(total)
    windows = tuple(sorted(rng.permutation(total)[:n].tolist()))
    common = {"n_tokens": (TOKENS,) * total, "n_bytes": (300,) * total}
    full = Measurement(FULL, tuple(before), **common)
    trial = replace(FULL, quantizer="rtn", scheme=Scheme(3))
    part = {name: values[:n] for name, values in common.items()}
    variant = Measurement(
        trial, tuple(after[list(windows)]), kl=(1.0,) * n, agree=(50,) * n, windows=windows if n < total else (), **part
    )
    return full, variant, after


def test_the_table_adds_delta_to_the_full_precision_loss_of_all_windows():
    full, variant, after = pair(64)
    frame, windows = tabulate([full, variant], [CHECKPOINT])
    row = frame[frame.quantizer == "rtn"].iloc[0]
    before = np.asarray(full.nll)
    difference = (np.asarray(variant.nll) - before[list(variant.windows)]) / TOKENS
    assert row["windows"] == 64
    assert row["loss_fp"] == pytest.approx(before.sum() / (256 * TOKENS))
    assert row["delta"] == pytest.approx(difference.mean())
    assert row["delta_se"] == pytest.approx(difference.std(ddof=1) / 8)
    assert row["loss_q"] == pytest.approx(row["loss_fp"] + row["delta"])
    assert row["ppl_q"] == pytest.approx(np.exp(row["loss_q"]))
    assert row["bpb_q"] == pytest.approx(row["loss_q"] * TOKENS / 300 / np.log(2))
    one, other = windows[row["key"]][:2]
    assert one.shape == other.shape == (256,)
    assert one.mean() == pytest.approx(row["loss_q"])
    assert (one - other).mean() == pytest.approx(row["delta"])
    assert (one - other).std(ddof=1) / 16 == pytest.approx(row["delta_se"])
    complete = tabulate(pair(256)[:2], [CHECKPOINT])[0].iloc[1]
    assert complete["loss_q"] == pytest.approx(after.sum() / (256 * TOKENS))


@pytest.mark.slow
def test_the_error_of_the_sum_is_that_of_a_simulation():
    """Oracle: texts drawn again and again; the error printed is the scatter of the estimate."""
    rows = [tabulate(pair(64, seed=seed)[:2], [CHECKPOINT])[0].iloc[1] for seed in range(300)]
    scatter = np.std([row["loss_q"] for row in rows])
    assert np.mean([row["loss_q_se"] for row in rows]) == pytest.approx(scatter, rel=0.12)
    own_windows = np.std([np.mean(pair(64, seed=seed)[1].nll) / TOKENS for seed in range(300)])
    assert scatter < 0.7 * own_windows, "the full-precision loss of the other windows gains nothing"


@pytest.fixture(scope="module")
def options(small):
    return {**small, "bits": (2, 8), "eval_windows": 96, "seq_len": 24, "precision": LOOSE}


def swept(work, trials=None, **more):
    return {m.trial.key(): m for m in sweep(work, trials or work.trials, tick=lambda _: None, **more)}


def numbers(measurement):
    return measurement.windows, measurement.nll, measurement.kl, measurement.agree, measurement.n_bytes


@pytest.fixture(scope="module")
def sample(saved, options):
    work = planned(saved("llama").parent, **options).workloads[0]
    return work, swept(work)


def test_a_record_says_which_windows_and_that_it_stopped(sample):
    work, records = sample
    order = StopRule(**work.trials[0].stop).order(96)
    full = records[work.trials[0].key()]
    assert len(full.nll) == 96
    assert full.windows == ()
    stopped = [m for m in records.values() if m.trial.scheme and m.details["stopped_early"]]
    whole = [m for m in records.values() if m.trial.scheme and not m.details["stopped_early"]]
    assert stopped, "nothing stopped: these tests test nothing"
    for m in stopped:
        assert m.windows == tuple(sorted(order[: len(m.nll)]))
        assert len(m.nll) in np.cumsum(StopRule(LOOSE).chunks(96))
        assert len(m.windows) == len(m.nll) == len(m.kl) == len(m.agree) == len(m.n_tokens) == len(m.n_bytes) < 96
        assert m.n_bytes == tuple(work.evaluation.n_bytes[list(m.windows)].tolist())
    for m in whole:
        assert m.windows == ()
        assert len(m.nll) == 96
    for m in records.values():
        assert Measurement.from_dict(m.to_dict()) == m


def test_what_is_measured_is_what_all_windows_have_there(sample, saved, options):
    """The same windows without a rule: the same losses up to the rounding of other batches."""
    _, records = sample
    plain = swept(planned(saved("llama").parent, **{**options, "precision": None}).workloads[0])
    assert not plain.keys() & records.keys(), "the rule is not part of the key"
    by_name = {(m.trial.quantizer, m.trial.bits): m for m in plain.values()}
    for m in records.values():
        places = list(m.windows) or list(range(96))
        other = by_name[m.trial.quantizer, m.trial.bits]
        assert m.nll == pytest.approx(np.asarray(other.nll)[places].tolist(), rel=1e-5)


def test_where_a_variant_ends_depends_on_nothing_but_itself(sample):
    """Alone, in any group, with the blocks on disk or after a resume: bit by bit the same."""
    work, records = sample
    alone = {}
    for trial in work.trials:
        alone |= swept(work, [trial])
    size = 4 * work.checkpoint.params_total
    for other in (alone, swept(work, memory=2 * size), swept(work, memory=1), swept(work, work.trials[::-1])):
        assert other.keys() == records.keys()
        for key, measurement in records.items():
            assert numbers(other[key]) == numbers(measurement)


@pytest.mark.slow
def test_a_run_under_a_rule_is_fitted_reported_and_resumed(trajectory, options, tmp_path):
    table = ptq_eval.run(trajectory, tmp_path / "out", **options).table
    variants = table[table.quantizer != "none"]
    assert (variants["windows"] < 96).any()
    assert (variants["loss_q"] - variants["loss_fp"]).to_numpy() == pytest.approx(variants["delta"].to_numpy())
    assert variants.groupby("step")["loss_fp"].nunique().eq(1).all()
    (path,) = (tmp_path / "out").glob("records/*.jsonl")
    stored = {m.trial.key(): numbers(m) for m in Store(tmp_path / "out").measurements()}
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[::3]))
    ptq_eval.run(trajectory, tmp_path / "out", write_report=False, **options)
    assert {m.trial.key(): numbers(m) for m in Store(tmp_path / "out").measurements()} == stored
    for precision in (None, 0.02):
        with pytest.raises(OutputMismatchError, match="--precision"):
            ptq_eval.run(trajectory, tmp_path / "out", **{**options, "precision": precision})


def test_the_progress_reaches_its_end(sample):
    from ptq_eval.measure.sweep import cost

    work, _ = sample
    ticks = []
    list(sweep(work, work.trials, tick=ticks.append))
    assert sum(ticks) == pytest.approx(cost(work, work.trials))


@pytest.mark.parametrize("precision", [0, 1, -0.1, 2])
def test_precisions_that_make_no_sense_are_refused(precision):
    with pytest.raises(OptionError, match="--precision"):
        ptq_eval.config.run.RunConfig(precision=precision)
