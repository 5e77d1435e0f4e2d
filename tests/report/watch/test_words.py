"""Golden: what a watch prints, for people and for programs."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from ptq_eval.errors import UnreadableCheckpointError
from ptq_eval.laws.turning.alerts import Alert
from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.records import Checkpoint
from ptq_eval.report.watch import words

CHECKPOINT = Checkpoint("small", 100, 2_000_000, 40_000, location="runs/small/checkpoint-100")
FORECAST = Alert(VerdictKind.FORECAST, "small", "gptq", 4.0, 40_000.0, 2e6, 2.5e6, 6e6, math.nan, 0.9)


@pytest.fixture
def table():
    same = {"run": "small", "step": 100, "format": "int", "status": "ok", "loss_fp": 3.0, "noise_floor": 0.01}
    rows = [
        {**same, "quantizer": "none", "bits": math.nan, "format": None, "loss_q": math.nan, "delta": math.nan},
        {**same, "quantizer": "gptq", "bits": 3.0, "loss_q": 3.1, "delta": 0.1, "delta_se": 0.002},
        {**same, "quantizer": "rtn", "bits": 4.0, "loss_q": 3.004, "delta": 0.004, "delta_se": 0.001},
        {**same, "quantizer": "rtn", "bits": 4.0, "format": "nvfp4", "loss_q": 3.02, "delta": 0.02, "delta_se": 0.001},
        {**same, "quantizer": "gptq", "bits": 3.0, "step": 50, "loss_q": 9.0, "delta": 6.0, "delta_se": 0.002},
    ]
    return pd.DataFrame(rows)


def fit(answer):
    entry = {"run": "small", "quantizer": "gptq", "bits": 3.0, "verdict_kind": "not_before", "verdict": "not before"}
    return {"critical_tokens": [{**entry, "answer": answer}, {**entry, "run": "another", "answer": None}]}


def test_a_measured_checkpoint_is_one_line(table):
    assert words.measured_text(CHECKPOINT, table, 12.3) == (
        "small@100 (D/N = 50): δ gptq 3bit 0.1000(20), rtn 4bit 0.0040(10)°, rtn nvfp4 0.0200(10); 12 s"
    )


def test_the_object_of_a_measured_checkpoint_is_strict_json_and_gives_a_logger_its_numbers(table):
    answer = {"low": 3e6, "value": None, "high": None, "level": 0.9}
    found = words.measured_json(CHECKPOINT, table, fit(answer), 12.34, 3.21)
    found = json.loads(json.dumps(found, allow_nan=False))
    assert (found["event"], found["step"], found["tokens"], found["seconds"]) == ("measured", 100, 2_000_000, 12.3)
    assert [row["quantizer"] for row in found["rows"]] == ["gptq", "rtn", "rtn"]
    assert words.metrics(found) == {
        "ptq/tokens_per_param": 50.0,
        "ptq/delta/gptq_3bit": 0.1, "ptq/delta_se/gptq_3bit": 0.002, "ptq/loss_q/gptq_3bit": 3.1,
        "ptq/delta/rtn_4bit": 0.004, "ptq/delta_se/rtn_4bit": 0.001, "ptq/loss_q/rtn_4bit": 3.004,
        "ptq/delta/rtn_nvfp4": 0.02, "ptq/delta_se/rtn_nvfp4": 0.001, "ptq/loss_q/rtn_nvfp4": 3.02,
        "ptq/critical_tokens_low/gptq_3bit": 3e6,
    }  # fmt: skip


def test_unknown_tokens_and_failed_cells_are_absent_from_a_logger(table):
    table[["delta", "delta_se", "loss_q"]] = math.nan
    found = words.measured_json(replace(CHECKPOINT, tokens=None), table, fit(None), 1.0, 1.0)
    assert words.metrics(json.loads(json.dumps(found, allow_nan=False))) == {}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "small, gptq at 4 bits: more data will soon harm: D_crit is forecast at 6M tokens (D/N = 150) "
            "(its 90 % interval begins at D = 2.5M; open)",
        ),
        (
            {"low": 1e6, "high": 9e6},
            "small, gptq at 4 bits: more data will soon harm: D_crit is forecast at 6M tokens (D/N = 150) "
            "(the present D, 2M, is already inside its 90 % interval; it ends at 9M)",
        ),
        (
            {"kind": VerdictKind.OBSERVED, "value": 1.5e6},
            "small, gptq at 4 bits: more data already harms; the loss after quantization was least at D = 1.5M tokens "
            "(D/N = 37.5)",
        ),
    ],
)
def test_the_sentence_of_an_alert(changes, text):
    alert = replace(FORECAST, **changes)
    assert words.alert_text(alert) == text
    assert json.loads(json.dumps(words.alert_json(alert), allow_nan=False))["text"] == text


def test_what_is_waited_for_and_what_is_not_measured():
    assert words.waiting_text(0, 0, 0) == "waiting; 0 checkpoints known"
    assert words.waiting_text(3, 1, 2) == "waiting; 3 checkpoints known, 1 incomplete, 2 beyond the budget"
    error = UnreadableCheckpointError("cut off", remedy="save it again")
    assert words.unmeasured_text(CHECKPOINT, error) == "small@100: not measured: cut off | remedy: save it again"
    assert words.unmeasured_json(CHECKPOINT, error)["error"] == "cut off | remedy: save it again"
