"""Contract of the callback, with the real Trainer: it measures, logs where the Trainer logs, and changes no weight."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from ptq_eval.errors import OptionError, TextTooShortError
from ptq_eval.training import PTQCallback
from tests.support.models import build

STEPS, EACH = 12, 4
TOKENS = 8 * 16
pytestmark = pytest.mark.slow


class Logger(TrainerCallback):
    """What TensorBoard, W&B and the others are to the Trainer."""

    def __init__(self):
        self.seen, self.late, self.ended = [], [], False

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = True  # here trackio closes its run, MLflow too, and TensorBoard its file

    def on_log(self, args, state, control, *, logs: Any = None, **kwargs):
        (self.late if self.ended else self.seen).append(dict(logs))


@pytest.fixture
def train(tmp_path, data, tokenizer):
    """train(make a callback of a trainer, arguments) -> (trainer, what a logger saw)."""

    def run(callback=None, **changes):
        settings = {
            "max_steps": STEPS, "save_steps": EACH, "per_device_train_batch_size": 8, "report_to": [], "use_cpu": True,
            "disable_tqdm": True, "include_num_input_tokens_seen": "all", "save_total_limit": 1, **changes,
        }  # fmt: skip
        logger = Logger()
        trainer = Trainer(
            model=build("llama", seed=3),
            args=TrainingArguments(str(tmp_path / "my-run"), **settings),
            train_dataset=data,
            data_collator=default_data_collator,
            processing_class=tokenizer,
            callbacks=[logger],
        )
        if callback is not None:
            trainer.add_callback(callback(trainer))
        trainer.train()
        assert logger.late == []
        return trainer, logger.seen

    return run


def test_the_last_checkpoint_is_measured_and_logged_and_no_weight_differs(train, quick, tmp_path):
    trainer, seen = train(lambda trainer: PTQCallback(trainer, budget=1, **quick))
    logged = [logs for logs in seen if "ptq/delta/rtn_3bit" in logs]
    assert logged
    assert logged[-1]["ptq/step"] == STEPS
    assert logged[-1] in [{k: v for k, v in logs.items() if k != "step"} for logs in trainer.state.log_history]
    out = tmp_path / "my-run" / "ptq"
    table = pd.read_csv(out / "degradation.csv")
    last = table[(table["step"] == STEPS) & (table["quantizer"] == "rtn")].iloc[0]
    assert last["delta"] == pytest.approx(logged[-1]["ptq/delta/rtn_3bit"], abs=1e-12)
    assert (last["run"], last["tokens"]) == ("my-run", STEPS * TOKENS)
    assert (out / "figures" / "delta_vs_ratio.png").exists()
    assert not (out / "copies").exists()
    plain, _ = train()
    for (name, one), other in zip(trainer.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


class Broken(TrainerCallback):
    """A logger without a network."""

    def on_log(self, args, state, control, *, logs: Any = None, **kwargs):
        if any(name.startswith("ptq/") for name in logs):
            raise ConnectionError("no network")


def test_a_logger_that_raises_ends_no_training_and_tokens_may_be_those_of_a_step(train, quick, tmp_path):
    def callback(trainer):
        trainer.add_callback(Broken())
        return PTQCallback(trainer, tmp_path / "out", tokens_per_step=4096, budget=1, **quick)

    with pytest.warns(UserWarning, match="log raised ConnectionError"):
        trainer, _ = train(callback, include_num_input_tokens_seen="no")
    assert trainer.state.global_step == STEPS
    assert set(pd.read_csv(tmp_path / "out" / "degradation.csv")["tokens"]) >= {STEPS * 4096}


def test_tokens_must_be_known(train, quick):
    with pytest.raises(OptionError, match="how many tokens a step has"):
        train(lambda trainer: PTQCallback(trainer, **quick), include_num_input_tokens_seen="no")


def test_a_text_that_fills_no_window_is_refused_before_training(train, quick, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("some words")
    with pytest.raises(TextTooShortError, match=r"short\.txt"):
        train(lambda trainer: PTQCallback(trainer, **{**quick, "eval_text": str(short), "seq_len": None}))
    assert not list((tmp_path / "my-run").glob("checkpoint-*"))


def test_an_alert_is_logged_and_passed_on(quick, caplog):
    calls = []
    trainer: Any = SimpleNamespace(args=SimpleNamespace(report_to=[]))
    callback = PTQCallback(trainer, alert=calls.append, **quick)
    with caplog.at_level(logging.WARNING):
        callback._alarm({"text": "more data will soon harm"})
    assert calls == [{"text": "more data will soon harm"}]
    assert "more data will soon harm" in caplog.text
