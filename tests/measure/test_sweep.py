"""Contract: what a sweep says about its own progress and cost, and what it leaves alone in the caller's process."""

import math
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest

from ptq_eval.errors import UnsupportedModelError
from ptq_eval.measure import memory
from ptq_eval.measure import sweep as sweeping
from ptq_eval.measure.sweep import cost, sweep
from tests.support.steps import planned


@pytest.fixture(scope="module")
def work(saved, small):
    options = {**small, "quantizers": ("rtn", "gptq", "awq"), "bits": (2, 3, 4)}
    return planned(saved("llama").parent, **options).workloads[0]


def one_at_a_time(work):
    """Bytes in which the model fits with one variant and not with two."""
    return 2 * 4 * work.checkpoint.params_total


@pytest.mark.parametrize("groups", ["one", "several"])
@pytest.mark.parametrize("missing", ["all", "quantized", "full precision", "shared only"])
def test_progress_ends_at_its_total(work, groups, missing):
    chosen = {
        "all": work.trials,
        "quantized": work.trials[1:],
        "full precision": work.trials[:1],
        "shared only": [trial for trial in work.trials if trial.calibration == "shared"],
    }[missing]
    ticks = []
    list(sweep(work, chosen, memory=None if groups == "one" else one_at_a_time(work), tick=ticks.append))
    assert sum(ticks) == pytest.approx(cost(work, chosen))
    assert all(amount >= 0 for amount in ticks)


@pytest.mark.parametrize("method", ["gptaq", "qronos"])
def test_a_pass_of_two_models_counts_twice(saved, small, method):
    options = {**small, "quantizers": ("gptq", method), "bits": (3, 4)}
    work = planned(saved("llama").parent, **options).workloads[0]
    own = {name: [trial for trial in work.trials if trial.quantizer == name] for name in ("gptq", method)}
    evaluating = {name: (1 + len(trials)) * len(work.evaluation.ids) for name, trials in own.items()}
    calibrating = {name: cost(work, trials) - evaluating[name] for name, trials in own.items()}
    assert calibrating == {"gptq": 2 * small["calib_windows"], method: 4 * small["calib_windows"]}


@pytest.mark.parametrize("groups", ["one", "several"])
def test_the_seconds_of_records_add_up_to_those_of_the_sweep(work, groups, monkeypatch):
    """On a clock that only runs while the sweep works: what its consumer takes between two groups does not count."""
    clock = count()
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    limit = None if groups == "one" else one_at_a_time(work)
    records = list(sweep(work, work.trials, memory=limit, tick=lambda _: None))
    seconds = [record.provenance["seconds"] for record in records]
    if groups == "one":
        assert seconds == [1 / len(records)] * len(records)
    else:
        assert seconds == [1 / 2, 1 / 2, *[1.0] * (len(records) - 2)], "the first group has full precision too"


@pytest.mark.parametrize(("times", "sound"), [(1.9, True), (2.1, False)])
def test_a_loss_far_above_that_of_equally_likely_tokens_is_no_measurement(work, times, sound):
    vocab, length = 50, work.evaluation.ids.shape[1] - 1
    nll = [times * math.log(vocab) * length] * 3
    if sound:
        sweeping._require_sane(work, nll, vocab)
        return
    with pytest.raises(UnsupportedModelError, match=r"equally likely tokens have 3.91: the model does not predict"):
        sweeping._require_sane(work, nll, vocab)


def test_a_model_that_is_sure_of_what_is_wrong_is_refused_by_the_sweep(work, monkeypatch):
    class Sure(sweeping.Evaluator):
        @property
        def full(self):
            return replace(super().full, nll=[1e6] * len(self.ids))

    monkeypatch.setattr(sweeping, "Evaluator", Sure)
    with pytest.raises(UnsupportedModelError, match="does not predict this text"):
        list(sweep(work, work.trials[:1], tick=lambda _: None))


def test_a_sweep_changes_nothing_of_the_process_that_calls_it(work, monkeypatch):
    import torch

    class Library:
        """A C library whose allocator may be asked to return what is free, and not be set."""

        malloc_trim = staticmethod(lambda kept: 0)

        @property
        def mallopt(self):
            raise AssertionError("the allocator of the caller's process was changed")

    own = memory.ctypes.CDLL
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name, *rest: Library() if name is None else own(name, *rest))
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()
    list(sweep(work, work.trials[:2], tick=lambda _: None))
    after = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()
    assert after == before
