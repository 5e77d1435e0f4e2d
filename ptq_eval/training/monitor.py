"""A hook for any training loop: saved checkpoints are copied, and measured by another process while training goes on.

    monitor = Monitor("runs/my-model-ptq", quantizers="gptq", bits=4, eval_text="val.txt", log=wandb.log)
    …
    monitor.saved(folder, step=step, tokens=tokens)     # after each save
    …
    monitor.close()

The other process is `ptq-eval watch` on a folder of copies, at low priority and with one thread.  So nothing of the
model, its random numbers or its device is touched here, and the training process spends time on a copy's start alone.
Copies are made in a thread, without the optimizer's state, and deleted after they are measured.  Where checkpoints come
faster than the budget lets them be measured, the newest copy replaces those that wait.

The budget holds for the wait at the end too: what it does not cover, the other process goes on with by itself.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ptq_eval.checkpoints import Overrides, discover, local_path
from ptq_eval.checkpoints.arrivals import Files, files_in, remove
from ptq_eval.config.options import Options, declared
from ptq_eval.config.run import RunConfig
from ptq_eval.config.watch import END, WatchConfig, refuse_meaningless
from ptq_eval.errors import full_disk
from ptq_eval.jobs.machine import THREADS
from ptq_eval.measure.texts import require_usable
from ptq_eval.models.loading import tokenizer_folder
from ptq_eval.report.watch import words

BUDGET = 0.05
"""The share of training time that measuring may take by default."""
EXCLUDED = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args.bin", "global_step*", "*.distcp")
"""Files of a checkpoint that are not copied: they are no part of the model."""
NICENESS = 10
"""By how much the other process is nicer than this one."""
END_SECONDS = 10.0
"""How long its end is waited for when nothing is left to measure."""
_NUMBER = ".watching"
"""File among the copies with the number of the process that measures them."""

Log = Callable[[dict[str, float], int], object]
"""log(numbers by name, step): called by `poll`."""
Alarm = Callable[[dict[str, Any]], object]
"""alarm(alert): called by `poll` with the fields of `ptq_eval.laws.turning.alerts.Alert` and a sentence, "text"."""


class Monitor:
    """Measures checkpoints of one run, called `name`, into the output folder `out`.

    log and alert are called by `poll`, in the thread that calls it; one that raises is warned of, and not called again.
    budget: the share of this machine's time that measuring may take (see `WatchConfig.budget`), with the wait at the
    end.  threads: how many the other process has.  model, tokenizer: those that are trained; with them a text is
    refused that does not fill one window.  options: as for `ptq_eval.run` and `ptq-eval watch`.

    Raises OptionError for a wrong one, TextSourceError and the like for a text that cannot be used, and OutputFullError
    if `out` cannot be written.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        name: str = "run",
        log: Log | None = None,
        alert: Alarm | None = None,
        budget: float = BUDGET,
        threads: int = 1,
        model: Any = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        self.out = Path(out)
        self.copies = self.out / "copies" / name
        self._log, self._alert = log, alert
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lock = threading.Lock()
        self._budget, self._began = budget, time.monotonic()
        self._spent = self._last = 0.0
        self._waiting: list[Path] = []
        self._begun: Path | None = None
        self._replaced: set[Path] = set()
        self._copying: threading.Thread | None = None
        self._heard = threading.Thread(target=self._listen, daemon=True)
        command = [sys.executable, "-m", "ptq_eval", "watch", str(self.copies), "-o", str(self.out)]
        command += ["--json", "--copies"]
        # Copies are complete when they are seen, so nothing is waited for.
        watched = {
            "every": 2.0,
            "settle": 0.0,
            "patience": 0.0,
            "device": "cpu",
            **options,
            "budget": budget,
            "pid": os.getpid(),
        }
        arguments, config = _read(watched)
        require_usable(config, model, tokenizer)
        command += arguments
        with full_disk(self.out):
            _take_over(self.copies)
            self.copies.mkdir(parents=True, exist_ok=True)
            said = (self.out / "watch.log").open("ab")
        nice = ["nice", "-n", str(NICENESS)] if shutil.which("nice") else []
        hidden = {} if options.get("device", "cpu") != "cpu" else {"CUDA_VISIBLE_DEVICES": ""}
        number = dict.fromkeys(THREADS, str(threads))
        with said:
            self._process = subprocess.Popen(
                [*nice, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, **number, **hidden},
            )
        with suppress(OSError):
            (self.copies / _NUMBER).write_text(str(self._process.pid), encoding="utf-8")
        self._heard.start()

    def saved(self, folder: str | Path, *, step: int, tokens: int | None = None, tokenizer: Any = None) -> None:
        """Have a checkpoint measured that was saved in `folder`, with D = `tokens` after this many steps.

        A checkpoint that is a file among others is given by that file (nanochat, nanoGPT).  tokens may be omitted where
        the checkpoint's own files say D.  tokenizer: one with `save_pretrained`, for checkpoints without.  Returns at
        once, unless the last copy is still being made; a failure to copy is warned of.
        """
        if self._copying is not None:
            self._copying.join()
        self._copying = threading.Thread(target=self._copy, args=(Path(folder), step, tokens, tokenizer))
        self._copying.start()

    def poll(self) -> list[dict[str, Any]]:
        """What happened since the last call, as `ptq-eval watch --json` prints it; logs numbers and raises alerts."""
        found = []
        while not self._events.empty():
            found.append(self._events.get())
        for event in found:
            if event["event"] == "measured":
                self._call("_log", words.metrics(event), event["step"])
            elif event["event"] == "alert":
                self._call("_alert", event)
            elif event["event"] in ("unmeasured", "delayed", "ended"):
                warnings.warn(words.warning_text(event), stacklevel=2)
        return found

    def close(self, wait: float | None = None) -> list[dict[str, Any]]:
        """Wait until what was saved last is measured, for `wait` seconds at most; what happened meanwhile.

        None waits for as long as the budget allows, not at all if it will not suffice, and `math.inf` until all is
        measured.  What is not measured by then, the other process measures while this one goes on or ends; a warning
        says so.  A full disk keeps it from that.
        """
        if self._copying is not None:
            self._copying.join()
        try:
            self.copies.mkdir(parents=True, exist_ok=True)
            (self.copies / END).touch()
        except OSError:
            self._process.terminate()
        limit = self._left() if wait is None else wait
        try:
            self._process.wait(None if math.isinf(limit) else limit)
        except subprocess.TimeoutExpired:
            found = self.poll()
            with self._lock:
                left = [*filter(None, [self._begun]), *self._waiting]
            if left:
                warnings.warn(words.left_text(left[-1].name, self._process.pid, self.out), stacklevel=2)
            return found
        self._heard.join()
        found = self.poll()
        shutil.rmtree(self.out / "copies", ignore_errors=True)
        return found

    def _left(self) -> float:
        """Seconds of waiting that the budget covers: 0 unless a measurement as long as the last one fits.

        With nothing left to measure, the other process ends soon, and that is waited for.
        """
        if self._budget >= 1:
            return math.inf
        with self._lock:
            if not self._waiting and self._begun is None:
                return END_SECONDS
            left = self._budget * (time.monotonic() - self._began) - self._spent
            return left if 0 < self._last <= left else 0.0

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(None if kind is None else 0)

    def _copy(self, folder: Path, step: int, tokens: int | None, tokenizer: Any) -> None:
        target = self.copies / f"checkpoint-{step}"
        partial = self.copies / f".checkpoint-{step}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            folder, tokens = _loadable(folder, tokens)
            before = _states(folder)
            shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(*EXCLUDED))
            if _states(folder) != before:
                raise OSError("its files changed meanwhile")
            if tokenizer is not None and tokenizer_folder(partial) is None:
                tokenizer.save_pretrained(partial)
            _say_place(partial, step, tokens)
            remove(target)
            partial.rename(target)
        except Exception as error:  # a tokenizer may raise anything, and nothing would hear of it in a thread
            shutil.rmtree(partial, ignore_errors=True)
            self._events.put(words.uncopied_json(folder, error))
            return
        with self._lock:
            self._replaced.update(self._waiting)
            self._replaced.discard(target)
            for other in self._waiting:
                if other != target:
                    remove(other)
            self._waiting = [target]

    def _listen(self) -> None:
        """Pass on what the other process says, and delete copies that it has done with."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # half a line, of a process that was killed
                continue
            self._hear(event)
        self._process.stdout.close()
        if code := self._process.wait():
            self._events.put(words.ended_json(code, self.out / "watch.log"))

    def _hear(self, event: dict[str, Any]) -> None:
        place = Path(event["location"]) if event.get("location") else None
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
            vanished = place in self._replaced and event["event"] == "unmeasured"
            if event["event"] in ("started", "measured", "unmeasured"):
                self._begun = place if event["event"] == "started" else None
            if event["event"] == "measured":
                self._spent, self._last = event["spent"], event["seconds"]
        if not vanished:  # it was being read when a newer one replaced it, which is no fault of the checkpoint
            self._events.put(event)

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self, name)
        if function is None:
            return
        try:
            function(*arguments)
        except Exception as error:  # a logger's trouble must not end a training
            setattr(self, name, None)
            warnings.warn(words.raised_text(name.strip("_"), error), stacklevel=3)


def _loadable(place: Path, tokens: int | None) -> tuple[Path, int | None]:
    """A folder that transformers loads, and D: for a checkpoint that is a file among others, as its format says."""
    if not place.is_file():
        return place, tokens
    found = next((one for one in discover([place.parent]) if one.location == str(place.absolute())), None)
    if found is None:
        raise OSError(f"{place.name} is no checkpoint of a known format")
    return local_path(found), found.tokens if tokens is None else tokens


def _states(folder: Path) -> Files:
    """The files that would be copied."""
    return tuple(
        state
        for state in files_in(folder)
        if not any(fnmatch(part, pattern) for part in Path(state[0]).parts for pattern in EXCLUDED)
    )


def _take_over(copies: Path) -> None:
    """End the process that an earlier monitor has left with these copies; what waits is kept, and measured here."""
    with suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((copies / _NUMBER).read_text(encoding="utf-8")))
        if str(copies) in process.cmdline():  # and no other process, that has its number now
            process.terminate()
            process.wait()
    for partial in copies.glob(".*"):
        shutil.rmtree(partial, ignore_errors=True)
    for name in (END, _NUMBER):
        with suppress(OSError):
            (copies / name).unlink()


def _say_place(folder: Path, step: int, tokens: int | None) -> None:
    """Have the copy's `trainer_state.json` say the step and D."""
    path = folder / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    state["global_step"] = step
    if tokens is not None:
        state["num_input_tokens_seen"] = tokens
    path.write_text(json.dumps(state), encoding="utf-8")


def _read(options: Mapping[str, Any]) -> tuple[list[str], RunConfig]:
    """Options as arguments of the command line, and those of a run.  Raises OptionError for an unknown or wrong one."""
    refuse_meaningless(options)
    kinds: tuple[type[Options], ...] = (WatchConfig, RunConfig, Overrides)
    known = {name for kind in kinds for name in declared(kind)}
    found: list[str] = []
    for kind in kinds:
        own = {name: value for name, value in options.items() if name in declared(kind)}
        read = kind.of(own)
        found += [part for name in own for part in declared(kind)[name].arguments(getattr(read, name))]
    RunConfig.of({name: options[name] for name in options if name not in known}, also=known)
    return found, RunConfig.of({name: options[name] for name in options if name in declared(RunConfig)})
