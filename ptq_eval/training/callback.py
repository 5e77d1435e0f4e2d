"""Degradation in the Trainer of transformers.  It is logged to whatever the Trainer logs to, through `Trainer.log`:

    trainer = Trainer(…)
    trainer.add_callback(PTQCallback(trainer, quantizers="gptq", bits=4, eval_text="val.txt"))
    trainer.train()

A callback has no other way to log, so it is given the trainer.
"""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ptq_eval.errors import OptionError
from ptq_eval.training.monitor import BUDGET, Alarm, Monitor

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_logger = logging.getLogger(__name__)


class PTQCallback(TrainerCallback):
    """Measures checkpoints that the Trainer saves, in another process, and logs δ and D_crit through `trainer.log`.

    out: the output folder, by default `ptq` in the Trainer's; it has report.md and figures after each checkpoint.
    nth_save: measure every so many saves.  tokens_per_step: of all processes; needed unless the Trainer counts
    tokens (`include_num_input_tokens_seen="all"`).  alert: called with each alert's fields, after a warning is logged
    and, where the Trainer reports to trackio, `trackio.alert`.  wait: seconds that the end of training waits for the
    last checkpoint at most (None: if the budget covers it; math.inf: until it is measured).  budget, threads and
    options: see `Monitor`.

    Only the main process measures.  Raises, when training begins, OptionError where D cannot be known, and the error of
    a text that cannot be used.
    """

    def __init__(
        self,
        trainer: Trainer,
        out: str | Path | None = None,
        *,
        nth_save: int = 1,
        tokens_per_step: int | None = None,
        alert: Alarm | None = None,
        wait: float | None = None,
        budget: float = BUDGET,
        **options: Any,
    ) -> None:
        self._trainer, self._out, self._nth, self._per_step = trainer, out, nth_save, tokens_per_step
        self._alert, self._wait = alert, wait
        self._options: dict[str, Any] = {"budget": budget, **options}
        self._monitor: Monitor | None = None
        self._saves = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the other process."""
        # Loggers close at the end of training, which is when the last checkpoint is logged: before them, then.
        others = self._trainer.callback_handler.callbacks
        others.remove(self)
        others.insert(0, self)
        if self._monitor is not None:  # of a training that was interrupted
            self._monitor.close(0)
            self._monitor = None
        if not state.is_world_process_zero:
            return
        if self._per_step is None and args.include_num_input_tokens_seen in ("no", False):
            raise OptionError(
                "PTQCallback does not know how many tokens a step has",
                remedy='give tokens_per_step=…, or TrainingArguments(include_num_input_tokens_seen="all")',
            )
        folder = Path(args.output_dir or ".")
        name = folder.resolve().name or "run"
        out = Path(self._out) if self._out is not None else folder / "ptq"
        self._monitor = Monitor(
            out,
            name=name,
            log=self._log,
            alert=self._alarm,
            model=kwargs.get("model"),
            tokenizer=kwargs.get("processing_class"),
            **self._options,
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the checkpoint measured that was just saved."""
        self._saves += 1
        if self._monitor is None or (self._saves - 1) % self._nth:
            return
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        tokens = None if self._per_step is None else self._per_step * state.global_step
        self._monitor.saved(folder, step=state.global_step, tokens=tokens, tokenizer=kwargs.get("processing_class"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log what was measured meanwhile."""
        if self._monitor is not None:
            self._monitor.poll()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the last checkpoint."""
        if self._monitor is not None:
            self._monitor.close(self._wait)
            self._monitor = None

    def _log(self, numbers: dict[str, float], step: int) -> None:
        self._trainer.log({**numbers, "ptq/step": float(step)})

    def _alarm(self, alert: dict[str, Any]) -> None:
        _logger.warning("%s", alert["text"])
        if "trackio" in (self._trainer.args.report_to or ()):
            import_module("trackio").alert(title="ptq-eval", text=alert["text"])
        if self._alert is not None:
            self._alert(alert)
