"""What `PTQCallback` costs a training: the same run of the real Trainer, with the callback and without.

A Llama of 1.2 M parameters is trained on text from one seed, for as many steps as take `--minutes` (10) without the
callback, and saves ten checkpoints.  The callback has its default budget and measures what it measures by default.
Each run is a process of its own, niced alike, one after the other, on one thread: the measuring process has the rest.
`training` lasts from the first step to the last; the wait for the last checkpoint follows, as far as the budget
allows; what is left of it is measured afterwards, and counted apart.  On a machine that others use, wall time is theirs
too, and CPU time is the number to trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup
from benchmarks.report import LEFT_OUT

LIMIT = 5.0
"""Percent of training time."""
MINUTES, QUICK_MINUTES = 10.0, 0.2
ALIKE = 1.25
"""Loads of the machine of which one is at most so many times the other are alike."""
SAVES = 10
BATCH, LENGTH = 8, 128
SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4}
WARM_UP, TIMED = 5, 40
"""Steps before those that say how long a step takes, and those."""


@dataclass(frozen=True)
class Run:
    """One training: seconds of wall and CPU time, of the training process and of the one that measures.

    `wait` follows the last step, `…_meanwhile` precedes it; `load` is the machine's average over the last minutes.
    """

    callback: bool
    steps: int
    training_wall: float
    training_cpu: float
    wait: float
    measuring_cpu: float
    measuring_cpu_meanwhile: float
    load: float
    weights: str
    measured: list[int]
    measured_meanwhile: int


def measure(setup: Setup) -> Outcome:
    """Both runs, and what the callback added."""
    minutes = setup.minutes or (QUICK_MINUTES if setup.quick else MINUTES)
    with tempfile.TemporaryDirectory() as folder:
        steps = _train(Path(folder) / "pace", 0, minutes).steps
        plain = _train(Path(folder) / "plain", steps, 0.0)
        watched = _train(Path(folder) / "watched", steps, 0.0, callback=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return outcome(plain, watched, cores, minutes)


def outcome(plain: Run, watched: Run, cores: int, minutes: float) -> Outcome:
    """What the callback added; wall times are held to the limit only where both runs had as much of the machine."""
    details = {"minutes": minutes, "cores": cores, "model": SHAPE, "plain": asdict(plain), "watched": asdict(watched)}
    fair = max(plain.load, watched.load) <= ALIKE * max(1.0, min(plain.load, watched.load))
    if not fair:
        loads = f"{plain.load:.1f} without the callback, {watched.load:.1f} with it"
        details[LEFT_OUT] = f"a comparison of wall times, because others used the machine (load {loads})"
    share = 100 * watched.measuring_cpu_meanwhile / (cores * watched.training_wall)
    found = [
        ("CPU time of the training process, more with the callback", _more(plain, watched, "training_cpu"), LIMIT),
        ("wall time of training, more with the callback", _more(plain, watched, "training_wall"), LIMIT * fair or None),
        ("CPU time of measuring while training / of the machine's cores", share, LIMIT),
        ("wait for the last checkpoint / training", 100 * watched.wait / watched.training_wall, LIMIT),
    ]
    claims = [Claim(f"callback: {what}", value, value, value, limit=limit, unit="%") for what, value, limit in found]
    same = float(plain.weights == watched.weights)
    claims.append(Claim("callback: final weights identical (1: yes)", same, same, same, limit=1.0, sense="at least"))
    after = watched.measuring_cpu - watched.measuring_cpu_meanwhile
    claims.append(Claim("callback: CPU time of measuring after training", after, after, after, unit="s"))
    return Outcome(claims, details)


def _more(plain: Run, watched: Run, name: str) -> float:
    """By how many percent."""
    return 100 * (getattr(watched, name) / getattr(plain, name) - 1)


def _train(folder: Path, steps: int, minutes: float, *, callback: bool = False) -> Run:
    """Train in a process of its own.  Raises CalledProcessError."""
    request = json.dumps({"folder": str(folder), "steps": steps, "minutes": minutes, "callback": callback})
    command = [sys.executable, "-m", "benchmarks.callback", request]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _main(folder: str, steps: int, minutes: float, callback: bool) -> Run:
    """One training in this process; with `minutes`, only as many steps as tell how many fill them."""
    import psutil

    from ptq_eval.training import PTQCallback

    count = steps or WARM_UP + TIMED
    times = _times(WARM_UP if minutes else 0)
    trainer = _trainer(Path(folder), count, times)
    if callback:
        trainer.add_callback(PTQCallback(trainer, tokens_per_step=BATCH * LENGTH))
    trainer.train()
    ended = time.perf_counter()
    psutil.wait_procs(psutil.Process().children())  # what measures the last checkpoint when training has ended
    steps = steps or max(SAVES, round(60 * minutes * TIMED / (times.last[0] - times.first[0])))
    logged = [int(line["ptq/step"]) for line in trainer.state.log_history if "ptq/step" in line]
    weights = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        weights.update(name.encode() + value.numpy().tobytes())
    children = os.times()
    return Run(
        callback,
        steps,
        times.last[0] - times.first[0],
        times.last[1] - times.first[1],
        ended - times.last[0],
        children.children_user + children.children_system,
        times.children,
        os.getloadavg()[1],
        weights.hexdigest(),
        logged,
        sum(line["step"] < count for line in trainer.state.log_history if "ptq/step" in line),
    )


def _trainer(folder: Path, steps: int, times: Any) -> Any:
    import torch
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    from ptq_eval.corpora import read

    torch.set_num_threads(1)
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/trajectory/llama-40k/checkpoint-1765")
    ids = torch.tensor(tokenizer(read("stdlib:train", max_chars=1_000_000).text)["input_ids"])
    rows: Any = [{"input_ids": row, "labels": row} for row in ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)]
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, tie_word_embeddings=True, **SHAPE)
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=max(1, steps // SAVES),
        save_total_limit=2,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        logging_steps=50,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=SEED,
    )
    model = LlamaForCausalLM(config)
    return Trainer(
        model, arguments, default_data_collator, train_dataset=rows, processing_class=tokenizer, callbacks=[times]
    )


def _times(skipped: int) -> Any:
    """A callback that notes wall and CPU time of this process, after so many steps and after the last."""
    import psutil
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        first = last = (0.0, 0.0)
        children = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == skipped:
                self.first = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last = time.perf_counter(), time.process_time()
            if state.global_step == state.max_steps:
                spent = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
                self.children = sum(one.user + one.system for one in spent)

    return Times()


if __name__ == "__main__":
    print(json.dumps(asdict(_main(**json.loads(sys.argv[1])))))
