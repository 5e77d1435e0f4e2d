"""Contract: activations and cache crossed with the weights of a run, from its options to its records and its table."""

import dataclasses
import math

import pytest
import torch

from ptq_eval.config.run import RunConfig
from ptq_eval.errors import NumberFormatError, OptionError
from ptq_eval.measure import session as sessions
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.roundings import roundings_of
from ptq_eval.measure.simulation import Simulation, Transform
from ptq_eval.measure.sweep import cost, sweep
from ptq_eval.records import FULL_PRECISION, WEIGHTS_KEPT, Trial
from ptq_eval.results.table import table_of
from ptq_eval.runtime import Cache, Rounding, is_runtime
from tests.support.steps import measured, planned

ALL = {"activation_bits": (8, 4), "kv_bits": (4,)}


@pytest.fixture(scope="module")
def grid(saved, small):
    """(workload, measurements) of RTN at 3 bits with two activation and one cache precision."""
    return measured(saved("llama").parent, **{**small, "quantizers": ("rtn",), "bits": (3,)}, **ALL)


def test_every_combination_is_measured_and_full_precision_once(grid):
    work, found = grid
    assert [trial.quantizer for trial in work.trials] == [FULL_PRECISION, *[WEIGHTS_KEPT] * 5, *["rtn"] * 6]
    named = lambda t: (t.quantizer, t.activations.get("format", ""), t.cache.get("keys", {}).get("format", ""))
    combinations = [(a, c) for a in ("", "int8", "int4") for c in ("", "int4")]
    wanted = [(q, a, c) for q in (WEIGHTS_KEPT, "rtn") for a, c in combinations if q == "rtn" or a or c]
    assert [named(m.trial) for m in found] == [(FULL_PRECISION, "", ""), *wanted]
    assert all(m.status == "ok" and m.nll for m in found)
    assert len({m.trial.key() for m in found}) == len(found)


def test_records_survive_json_and_old_keys_stay(grid):
    _, found = grid
    assert all(Trial.from_dict(m.trial.to_dict()) == m.trial for m in found)
    plain = [m.trial for m in found if not is_runtime(m.trial)]
    assert all({"activations", "cache"}.isdisjoint(trial.identity()) for trial in plain)


def test_the_weights_alone_are_measured_as_without_activations(grid, saved, small):
    _, alone = measured(saved("llama").parent, **{**small, "quantizers": ("rtn",), "bits": (3,)})
    known = {m.trial.key(): m for m in grid[1]}
    for m in alone:
        assert known[m.trial.key()].nll == m.nll
        assert known[m.trial.key()].details == m.details


def test_a_variant_carries_its_weights_and_rounds(grid):
    """Against one simulation put together here."""
    work, found = grid
    (record,) = [
        m for m in found if m.trial.quantizer == "rtn" and m.trial.activations.get("bits") == 4 and m.trial.cache
    ]
    with sessions.Session.opened(work) as session:
        (variant,) = session.quantized([dataclasses.replace(record.trial, activations={}, cache={})])
        cache = Cache(Rounding("int4", 4, "channel"), Rounding("int4", 4, "token"))
        simulation = Simulation(session.model, Rounding("int4", 4, "token"), cache)
        simulation.prepare(session.model.parameters_of(variant.weights), session.evaluation)
        nll = []
        with session.model.carrying(session.model.parameters_of(variant.weights)), simulation.running():
            for row in session.evaluation.split(1):
                logits = session.model.logits(row)[0, :-1].double().log_softmax(-1)
                nll.append(-float(logits.gather(1, row[0, 1:, None].long()).sum()))
    assert record.nll == pytest.approx(nll, rel=1e-5)
    assert record.bits_per_weight is not None


@pytest.mark.parametrize("method", ["awq", "smoothquant", "hadamard-rtn"])
def test_inputs_are_rounded_as_the_quantized_weight_reads_them(saved, small, method):
    """A scale or a rotation of inputs that the weights absorb changes only what is rounded."""
    options = {**small, "quantizers": (method,), "bits": (8,), "activation_bits": (4,)}
    work = planned(saved("llama").parent, **options).workloads[0]
    trial = work.trials[-1]
    assert trial.activations
    with sessions.Session.opened(work) as session:
        (variant,) = session.quantized([work.trials[-2]])
        names = {*variant.input_scales, *variant.rotations}
        assert names
        transforms = {n: Transform(variant.input_scales.get(n), variant.rotations.get(n)) for n in names}
        losses = {}
        for kind, known in (("with", transforms), ("without", {})):
            simulation = Simulation(session.model, Rounding("int4", 4, "token"), None, known)
            evaluator = Evaluator(session.model, session.evaluation)
            simulation.prepare(session.model.parameters_of(variant.weights), session.evaluation)
            ((_, scores),) = evaluator.score([variant.weights], [simulation])
            losses[kind] = scores.nll
    (record,) = [m for m in sweep(work, [trial], tick=lambda _: None)]
    assert list(record.nll) == losses["with"]
    assert losses["with"] != losses["without"]


def test_weights_are_quantized_once_for_all_their_variants(saved, small, monkeypatch):
    calls = []
    own = sessions.Session.quantized
    monkeypatch.setattr(sessions.Session, "quantized", lambda s, t, **k: calls.append(len(t)) or own(s, t, **k))
    options = {**small, "quantizers": ("rtn", "gptq"), "bits": (3, 4), **ALL}
    work = planned(saved("llama").parent, **options).workloads[0]
    ticks = []
    found = list(sweep(work, work.trials, tick=ticks.append))
    assert sum(calls) == 4
    assert len(found) == len(work.trials)
    assert sum(ticks) == pytest.approx(cost(work, work.trials))


@pytest.mark.parametrize("models", [0, 2], ids=["on disk", "one variant at a time"])
def test_the_same_records_whatever_fits_in_memory(grid, models):
    work, found = grid
    memory = max(1, models * 4 * work.checkpoint.params_total)
    again = sweep(work, work.trials, memory=memory, tick=lambda _: None)
    assert {m.trial.key(): m.nll for m in again} == {m.trial.key(): m.nll for m in found}


def test_a_quantized_head_reads_rounded_inputs(saved, small):
    """The head runs apart from the model where logits are its product with the hidden states."""
    options = {**small, "bits": (), "include_head": True, "activation_bits": (2,)}
    _, (full, own) = measured(saved("gpt-neox").parent, **options)
    _, (_, less) = measured(saved("gpt-neox").parent, **{**options, "include_head": False})
    assert full.nll != own.nll
    assert own.nll != less.nll


def test_static_ranges_name_their_windows_and_need_no_other_calibration(saved, small):
    options = {**small, "quantizers": ("rtn",), "bits": (4,), "activation_bits": (8,)}
    options |= {"activation_per": "tensor", "activation_range": "static"}
    work, found = measured(saved("llama").parent, **options)
    own = [m.trial for m in found if m.trial.activations]
    assert all(trial.activations["windows"] == work.calibration.digest for trial in own)
    assert all(m.status == "ok" for m in found)
    assert cost(work, work.trials) == 4 * len(work.evaluation.ids) + 2 * small["calib_windows"]


def test_a_model_that_cannot_be_treated_is_a_failed_record_and_the_others_are_measured(saved, small):
    options = {**small, "quantizers": ("rtn",), "bits": (4,), "kv_bits": (4,), "key_rope": "before"}
    _, found = measured(saved("gpt2").parent, **options)
    failed = [m for m in found if m.status == "failed"]
    assert [m.trial.quantizer for m in failed] == [WEIGHTS_KEPT, "rtn"]
    assert all("keys have no projection of their own" in m.message for m in failed)
    assert [m.status for m in found if not m.trial.cache] == ["ok", "ok"]


def test_the_table_says_how_and_pairs_with_the_one_reference(grid):
    work, found = grid
    table, _ = table_of(found, [work.checkpoint])
    rows = table.set_index(["quantizer", "activation_format", "kv_format"], drop=False)
    assert len(table) == len(found)
    assert table["delta"].notna().sum() == len(found) - 1
    row = rows[(rows["quantizer"] == WEIGHTS_KEPT) & (rows["activation_bits"] == 4) & (rows["kv_bits"] == 4)].iloc[0]
    named = {
        name: row[name]
        for name in ("activation_per", "activation_range", "key_per", "key_rope", "value_per", "kv_range")
    }
    assert named == dict(zip(named, ("token", "dynamic", "channel", "after", "token", "dynamic")))
    assert math.isnan(row["bits"])
    full = found[0]
    (m,) = [m for m in found if m.trial.key() == row["key"]]
    assert row["delta"] == pytest.approx(m.loss - full.loss)
    assert rows.loc[rows["quantizer"] == FULL_PRECISION, "activation_format"].isna().all()


def test_requests_that_contradict_themselves_are_refused():
    with pytest.raises(NumberFormatError, match="unknown number format"):
        roundings_of(RunConfig(activation_formats=("fp8_e4m4",)))
    with pytest.raises(OptionError, match="mxfp4 has blocks of channels"):
        roundings_of(RunConfig(kv_formats=("mxfp4",)))
    assert roundings_of(RunConfig(kv_formats=("mxfp4",), key_per="token"))[1]["cache"]["keys"]["bits"] == 4
    with pytest.raises(OptionError, match="--activation-range static is a range per channel or per tensor"):
        roundings_of(RunConfig(activation_bits=(8,), activation_range="static"))
    with pytest.raises(OptionError, match="nothing to measure"):
        RunConfig(bits=())
    assert RunConfig(bits=(), kv_bits="8,4").kv_bits == (8, 4)


def test_rounding_is_that_of_a_quantized_tensor_not_of_a_batch(grid):
    """The batch that a window is in does not change its loss."""
    work, _ = grid
    with sessions.Session.opened(work) as session:
        scores = []
        for batch in (1, 4):
            simulation = Simulation(session.model, Rounding("int4", 4, "tensor"))
            evaluator = Evaluator(session.model, session.evaluation, batch=batch)
            scores.append(torch.tensor(evaluator.score([{}], [simulation])[0][1].nll))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=0)
