"""Contract: what the callback measures is stored by the loggers that the Trainer reports to, and an alert is one of
trackio's: with TensorBoard, trackio, W&B (offline) and MLflow (a folder) themselves (`make loggers-test`)."""

import math
import sqlite3
from contextlib import closing

import pytest
from transformers import Trainer, TrainingArguments, default_data_collator

from ptq_eval.training import PTQCallback
from tests.support.models import build

pytestmark = pytest.mark.loggers
NAME = "train/ptq/delta/rtn_3bit"


@pytest.fixture
def train(tmp_path, data, tokenizer, quick, monkeypatch):
    """train(logger, do=…) -> the trainer, after a training that reports to it; do(callback) before its end."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def run(logger, do=lambda callback: None):
        args = TrainingArguments(
            str(tmp_path / "run"), max_steps=4, save_steps=4, per_device_train_batch_size=8, report_to=[logger],
            use_cpu=True, disable_tqdm=True, include_num_input_tokens_seen="all",
        )  # fmt: skip
        trainer = Trainer(
            model=build("llama", seed=3), args=args, train_dataset=data, data_collator=default_data_collator,
            processing_class=tokenizer,
        )  # fmt: skip

        class Alarmed(PTQCallback):
            def on_step_end(self, *args, **more):
                super().on_step_end(*args, **more)
                do(self)

        trainer.add_callback(Alarmed(trainer, wait=math.inf, **quick))
        trainer.train()
        return next(logs for logs in trainer.state.log_history if "ptq/delta/rtn_3bit" in logs)

    return run


def test_tensorboard_has_the_numbers(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = train("tensorboard")
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    (found,) = board.Scalars(NAME)
    assert found.value == pytest.approx(logged["ptq/delta/rtn_3bit"], rel=1e-6)


def test_trackio_has_the_numbers_and_the_alert(train, tmp_path):
    train("trackio", do=lambda callback: callback._alarm({"text": "more data will soon harm"}))
    (stored,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(stored)) as database:
        assert any(NAME in str(row) for row in database.execute("SELECT * FROM metrics"))
        assert any("more data will soon harm" in str(row) for row in database.execute("SELECT * FROM alerts"))


def test_wandb_has_the_numbers(train, tmp_path):
    import wandb

    logged = train("wandb")
    try:
        assert wandb.run is not None
        assert wandb.run.summary[NAME] == pytest.approx(logged["ptq/delta/rtn_3bit"], rel=1e-6)
    finally:
        wandb.finish()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_mlflow_has_the_numbers(train, tmp_path):
    logged = train("mlflow")
    (stored,) = (tmp_path / "mlflow").rglob("delta/rtn_3bit")
    (line,) = stored.read_text(encoding="utf-8").splitlines()
    assert float(line.split()[1]) == pytest.approx(logged["ptq/delta/rtn_3bit"], rel=1e-6)
