"""Contract, property and oracle: cells of two output folders, paired window by window."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ptq_eval
from ptq_eval.errors import DataFileError, EmptyFolderError, NothingToFitError, OptionError
from ptq_eval.results.gate.decision import Outcome
from ptq_eval.results.gate.pairs import Absence, Condition
from ptq_eval.results.gate.verdict import Verdict
from tests.results.gate.support import TOKENS, WINDOWS, checkpoint, grid, moved, noise, write


@pytest.fixture
def compared(tmp_path):
    """compared(old, new, **options): the comparison of two lists of measurements."""

    def compare(old, new, runs=({}, {}), **options):
        folders = [write(tmp_path / name, found, run) for name, found, run in zip(("old", "new"), (old, new), runs)]
        return ptq_eval.compare(*folders, **options)

    return compare


def cell(found, quantizer="gptq", bits=3, step=100):
    [one] = [
        c for c in found.cells
        if (c.pair.about["quantizer"], c.pair.about["bits"], c.pair.about["step"]) == (quantizer, bits, step)
    ]  # fmt: skip
    return one


def test_a_result_is_the_same_as_itself(compared):
    found = compared(grid(), grid())
    assert found.verdict == Verdict.NOT_WORSE
    assert len(found.cells) == 2 * 2 * 3
    assert {one.outcome for one in found.cells} == {Outcome.SAME}
    assert all(math.isfinite(one.smallest) for one in found.cells)


def test_the_error_is_that_of_a_naive_paired_test(compared):
    """Two windows in each stratum: the variance of a mean of pairs, with the share of the text that was seen."""
    new = moved(grid(), noise(0.01), quantizer="gptq", bits=3, step=100)
    one = cell(compared(grid(), new)).pair.evidence
    losses = [np.array(next(m.nll for m in side if _is(m))) / TOKENS for side in (grid(), new)]
    gaps = (losses[1] - losses[0]).reshape(-1, 2)
    within = ((gaps[:, 0] - gaps[:, 1]) ** 2 / 2).sum() * 2 / WINDOWS**2
    assert one.worsening == pytest.approx(gaps.mean(), abs=1e-12)
    assert one.error == pytest.approx(math.sqrt((1 - 0.1) * within))
    assert (one.df, one.windows, one.share) == (WINDOWS / 2, WINDOWS, pytest.approx(0.1))


def _is(m):
    return (m.trial.quantizer, m.trial.bits, m.trial.checkpoint.step) == ("gptq", 3, 100)


def test_one_worse_cell_is_found_and_the_others_are_not(compared):
    new = moved(moved(grid(), 0.03, quantizer="gptq", bits=3, step=100), noise(0.003), quantizer="rtn")
    found = compared(grid(), new)
    assert found.verdict == Verdict.WORSE
    assert [one.pair.about["bits"] for one in found.worse] == [3]
    assert cell(found).pair.new - cell(found).pair.base == pytest.approx(0.03)
    assert cell(found, "rtn").outcome == Outcome.NOT_WORSE


def test_a_tolerance_is_absolute_and_can_be_chosen(compared):
    new = moved(grid(), 0.03, quantizer="gptq", bits=3)
    assert compared(grid(), new, tolerance=0.031).verdict == Verdict.NOT_WORSE


def test_better_cells_are_named_and_pass(compared):
    found = compared(grid(), moved(grid(), -0.03, quantizer="gptq", bits=3))
    assert found.verdict == Verdict.NOT_WORSE
    assert len(found.of(Outcome.BETTER)) == 2


def test_another_rounding_may_be_chance_and_is_not_for_a_model(tmp_path):
    """Windows show a difference for certain, but another rounding would move the loss by as much."""
    old, new = grid(rounding=0.05), moved(grid(rounding=0.05), lambda losses: noise(0.06)(losses) + 0.05, bits=3)
    folders = write(tmp_path / "old", old), write(tmp_path / "new", new)
    method, model = (ptq_eval.compare(*folders, judge=judge) for judge in ("method", "model"))
    assert (method.verdict, model.verdict) == (Verdict.NOT_WORSE, Verdict.WORSE)
    assert cell(model).luck
    by_method, by_model = cell(method).pair.evidence, cell(model).pair.evidence
    assert by_method.chance == pytest.approx(math.hypot(0.05, 0.05))
    assert by_model.chance == 0
    assert by_model.error == by_method.error


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"protocol": "other"}, Condition.PROTOCOL),
        ({"corpus": "other"}, Condition.CORPUS),
        ({"dtype": "bfloat16"}, Condition.DTYPE),
        ({"device": "cuda"}, Condition.DEVICE),
        ({"include_head": True}, Condition.HEAD),
        ({"include_embedding": True}, Condition.EMBEDDING),
    ],
)
def test_what_a_loss_is_measured_with_must_not_differ(compared, change, what):
    found = compared(grid(), grid(**change))
    assert found.verdict == Verdict.NOT_COMPARABLE
    assert {one.what for one in found.mismatches} == {what}
    assert not found.cells


def of_trials(found, change):
    return [replace(m, trial=change(m.trial)) for m in found]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: replace(t, calibration_draw=replace(t.calibration_draw, text="other")), Condition.CALIBRATION_TEXT),
        (lambda t: replace(t, calibration_draw=replace(t.calibration_draw, windows=8)), Condition.CALIBRATION_WINDOWS),
        (lambda t: replace(t, calibration_draw=replace(t.calibration_draw, length=8)), Condition.CALIBRATION_LENGTH),
        (lambda t: replace(t, calibration="sequential"), Condition.CALIBRATION),
        (lambda t: replace(t, calibration_corpus="other"), Condition.CALIBRATION_DRAW),
    ],
)
def test_calibration_must_not_differ_and_rounding_has_none(compared, change, what):
    found = compared(grid(), of_trials(grid(), lambda t: change(t) if t.calibration_draw else t))
    assert found.verdict == Verdict.NOT_COMPARABLE
    assert {(one.what, one.about["quantizer"]) for one in found.mismatches} == {(what, "gptq")}
    assert {one.pair.about["quantizer"] for one in found.cells} == {"rtn"}


def test_other_weights_are_not_comparable(compared):
    def other(trial):
        return replace(trial, checkpoint=checkpoint(trial.checkpoint.step, weights="bb"))

    found = compared(grid(), of_trials(grid(), other))
    assert {one.what for one in found.mismatches} == {Condition.WEIGHTS}


def test_versions_of_quantizers_and_of_the_program_may_differ(compared):
    new = of_trials(grid(), lambda t: replace(t, quantizer_version="2"))
    found = compared(grid(), new, runs=({}, {"versions": {"ptq-eval": "9.9"}}))
    assert found.verdict == Verdict.NOT_WORSE
    assert (found.base.quantizers, found.new.quantizers) == ({"rtn": "1", "gptq": "1"}, {"rtn": "2", "gptq": "2"})
    assert found.new.version == "9.9"


def test_cells_that_the_new_result_lacks_are_missing_and_new_ones_are_not(compared):
    found = compared(grid(bits=(2, 3)), grid(bits=(3, 4)))
    assert found.verdict == Verdict.MISSING
    assert {one.about["bits"] for one in found.missing} == {2}
    assert {one.why for one in found.missing} == {Absence.NOT_THERE}
    assert {about["bits"] for about in found.added} == {4}
    assert {one.pair.about["bits"] for one in found.cells} == {3}


def test_a_failed_measurement_is_missing_with_its_message(compared):
    new = [replace(m, nll=(), status="failed", message="no room") if _is(m) else m for m in grid()]
    [one] = compared(grid(), new).missing
    assert (one.why, one.message) == (Absence.FAILED, "no room")


def test_a_cell_that_failed_before_is_not_missing(compared):
    old = [replace(m, nll=(), status="failed", message="no room") if _is(m) else m for m in grid()]
    found = compared(old, grid())
    assert found.verdict == Verdict.NOT_WORSE
    assert len(found.cells) == 11


def test_an_excluded_checkpoint_is_missing_with_its_reason(compared):
    bad = checkpoint(200).with_problem("nan", "weights are not finite", fatal=True)
    new = [m for m in grid() if m.trial.checkpoint.step == 100]
    found = compared(grid(), new, runs=({}, {"checkpoints": [checkpoint(100).to_dict(), bad.to_dict()]}))
    assert {(one.why, one.about["step"]) for one in found.missing} == {(Absence.EXCLUDED, 200)}
    assert "not finite" in found.missing[0].message


def test_the_lowest_exit_code_wins(compared):
    new = moved(grid(steps=(100,)), 0.03, quantizer="rtn", bits=3)
    new = of_trials(new, lambda t: replace(t, calibration="sequential") if t.calibration_draw else t)
    found = compared(grid(), new)
    assert found.mismatches
    assert found.missing
    assert (found.verdict, found.verdict.exit_code) == (Verdict.WORSE, 1)


def test_options_of_a_quantizer_make_another_cell(compared):
    found = compared(grid(), of_trials(grid(), lambda t: replace(t, options={"damping": 0.02}) if t.scheme else t))
    assert len(found.missing) == len(found.added) == 12


def early(found, windows):
    """As if measurements had stopped early, at these windows."""
    places = sorted(windows)

    def cut(values):
        return tuple(values[i] for i in places)

    return [
        replace(m, nll=cut(m.nll), n_tokens=cut(m.n_tokens), kl=cut(m.kl), agree=cut(m.agree), windows=tuple(places))
        if m.trial.scheme
        else m
        for m in found
    ]


def test_measurements_that_stopped_early_are_compared_on_common_windows(compared):
    order = np.random.default_rng(0).permutation(WINDOWS).tolist()
    new = moved(grid(), noise(0.01), quantizer="gptq", bits=3, step=100)
    one = cell(compared(early(grid(), order[:40]), early(new, order[:24]))).pair
    assert one.windows == (24, 40, 24)
    losses = [np.array(next(m.nll for m in side if _is(m))) / TOKENS for side in (grid(), new)]
    assert one.evidence.worsening == pytest.approx((losses[1] - losses[0])[order[:24]].mean())


def test_no_window_in_common_is_not_comparable(compared):
    found = compared(early(grid(), range(20)), early(grid(), range(20, 40)))
    assert {one.what for one in found.mismatches} == {Condition.COMMON_WINDOWS}


def test_losses_that_are_not_finite_are_worse_than_any(compared):
    found = compared(grid(), moved(grid(), math.inf, quantizer="gptq", bits=3, step=100))
    assert found.verdict == Verdict.WORSE
    assert cell(found).pair.evidence.worsening == math.inf


def test_common_draws_of_the_calibration_are_averaged(compared):
    old = grid(draws=3, steps=(100,))
    new = [m for m in old if m.trial.calibration_corpus != "calibration1"]
    one = cell(compared(old, moved(new, 0.02, quantizer="gptq", bits=3))).pair
    assert one.draws == 2
    assert one.evidence.worsening == pytest.approx(0.02)


def test_the_drift_of_the_full_precision_loss_is_known(compared):
    new = [replace(m, nll=tuple(x + 0.001 * TOKENS for x in m.nll)) if m.trial.scheme is None else m for m in grid()]
    found = compared(grid(), new)
    assert {round(one.pair.drift, 6) for one in found.cells} == {0.001}
    assert found.verdict == Verdict.NOT_WORSE


@settings(max_examples=5, deadline=None)
@given(st.floats(-0.05, 0.05), st.floats(0, 0.05))
def test_swapping_the_results_turns_the_sign(tmp_path_factory, by, size):
    folder = tmp_path_factory.mktemp("swapped")
    folders = (
        write(folder / "old", grid(steps=(100,))),
        write(folder / "new", moved(grid(steps=(100,)), lambda losses: noise(size)(losses) + by, quantizer="gptq")),
    )
    there, back = (ptq_eval.compare(*order) for order in (folders, folders[::-1]))
    for one, other in zip(there.cells, back.cells):
        assert one.pair.evidence.worsening == -other.pair.evidence.worsening
        assert one.pair.evidence.total == pytest.approx(other.pair.evidence.total)
        assert (one.outcome == Outcome.WORSE) == (other.outcome == Outcome.BETTER)


def test_a_table_without_records_is_compared_with_a_bound(tmp_path):
    old, new = grid(), moved(grid(), 0.2, quantizer="gptq", bits=3, step=100)
    folders = write(tmp_path / "old", old), write(tmp_path / "new", new)
    tables = []
    for folder in folders:
        result = ptq_eval.load(folder, bootstrap=5)
        (tmp_path / f"{folder.name}-table").mkdir()
        result.table.to_csv(tmp_path / f"{folder.name}-table" / "degradation.csv", index=False)
        tables.append(tmp_path / f"{folder.name}-table")
    bound, exact = cell(ptq_eval.compare(*tables)), cell(ptq_eval.compare(*folders))
    assert not bound.pair.paired
    assert bound.pair.evidence.worsening == pytest.approx(exact.pair.evidence.worsening)
    assert bound.pair.evidence.error > exact.pair.evidence.error
    mixed = ptq_eval.compare(folders[0], tables[1])
    assert cell(mixed).pair.evidence.error == pytest.approx(bound.pair.evidence.error)
    assert mixed.verdict == Verdict.WORSE


def test_results_below_a_folder_are_compared_together(tmp_path):
    for side, by in (("old", 0.0), ("new", 0.05)):
        write(tmp_path / side / "a", grid(steps=(100,)))
        write(tmp_path / side / "deep" / "b", moved(grid(steps=(100,)), by))
    found = ptq_eval.compare(tmp_path / "old", tmp_path / "new")
    assert {one.pair.about["run"] for one in found.worse} == {"deep/b/tiny"}
    assert {one.pair.about["run"] for one in found.cells} == {"a/tiny", "deep/b/tiny"}


def test_records_of_an_early_version_are_read_without_their_floor(tmp_path):
    old, new = (write(tmp_path / name, moved(grid(), by)) for name, by in (("old", 0), ("new", 0.03)))
    for folder in (old, new):
        path = folder / "records" / "worker-1-of-1.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for name in ("details", "windows"):
                line.pop(name)
            for name in ("sample", "calibration_draw", "stop", "include_embedding"):
                line["trial"].pop(name)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = ptq_eval.compare(old, new)
    assert found.verdict == Verdict.WORSE
    assert not any(one.pair.luck_known for one in found.cells)


def test_a_damaged_record_is_missing_and_named(compared, tmp_path):
    write(tmp_path / "a", grid())
    path = write(tmp_path / "b", grid()) / "records" / "worker-1-of-1.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    found = ptq_eval.compare(tmp_path / "a", tmp_path / "b")
    assert found.verdict == Verdict.MISSING
    assert len(found.missing) == 1
    assert found.new.damaged == (("worker-1-of-1.jsonl", 3),)


def test_what_holds_no_results_is_refused(tmp_path):
    write(tmp_path / "good", grid())
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyFolderError, match="no such folder"):
        ptq_eval.compare(tmp_path / "good", tmp_path / "nowhere")
    with pytest.raises(NothingToFitError, match="holds no results"):
        ptq_eval.compare(tmp_path / "empty", tmp_path / "good")
    with pytest.raises(NothingToFitError, match="no quantized measurement"):
        ptq_eval.compare(write(tmp_path / "full", [m for m in grid() if m.trial.scheme is None]), tmp_path / "good")
    (tmp_path / "empty" / "degradation.csv").write_text("run,step\nx,1\n")
    with pytest.raises(DataFileError, match="lacks columns"):
        ptq_eval.compare(tmp_path / "good", tmp_path / "empty")
    names = "run,step,quantizer,bits,loss_q,delta,delta_se,status,weights_sha,protocol,options"
    (tmp_path / "empty" / "degradation.csv").write_text(f"{names}\nx,1,rtn,4,1,1,1,ok,a,b,not json\n")
    with pytest.raises(DataFileError, match="cannot be read"):
        ptq_eval.compare(tmp_path / "good", tmp_path / "empty")
    with pytest.raises(OptionError, match="too small"):
        ptq_eval.compare(tmp_path / "good", tmp_path / "good", tolerance=-0.1)
