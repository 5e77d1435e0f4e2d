"""The training loop over one stack of legs, resumable at any moment with the same bits on one machine.

Files of a study folder OUT that are written here:

OUT/runs/RUN/trunk/checkpoint-STEP      also annealed/, and ema-D/ and lawa-k/ for averages of the trunk
OUT/runs/RUN/log.jsonl                  loss and learning rate; log-annealed-STEP.jsonl of a branch
OUT/runs/RUN/starts/step-STEP.pt        weights and optimizer state from which a branch starts, or may start
OUT/stacks/ID.json, ID.pt               the legs of a stack and whether it is done; its state while it is not
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_eval.pretrain.architectures import model_config
from ptq_eval.pretrain.data import Batches
from ptq_eval.pretrain.saving import (
    read_state,
    save_checkpoint,
    state_file,
    training_record,
    write_state,
    write_whole,
    writing,
)
from ptq_eval.pretrain.stacked import optimizers
from ptq_eval.pretrain.stacked.averages import Averages
from ptq_eval.pretrain.stacked.llama import StackedLlama
from ptq_eval.pretrain.stacked.options import FULL, PARTS, RunOptions
from ptq_eval.pretrain.stacked.plan import Leg, branch_starts, identity
from ptq_eval.pretrain.stacked.precision import Precision, Rounding

_REMEDY = "delete that file and the run's folder to train it again"
LOG_EVERY = 50
KEEP_SECONDS = 60.0
"""The state is saved after so long at the latest: this much work is lost at most."""
COMPILE_STEPS = 1000
"""A stack of at least so many steps is compiled on the CPU too: compiling takes about a minute."""

Progress = Callable[[int, int], None]
"""progress(steps done of a stack, all its steps)."""


@dataclass(frozen=True, eq=False)
class Material:
    """A tokenized text: its tokenizer, its token ids [tokens], and the digest of its bytes."""

    tokenizer: Any
    ids: Any
    text_digest: str

    def batches(self, options: RunOptions) -> Batches:
        """The training batches of a run."""
        held = options.validation_windows * options.context
        ids = self.ids[: len(self.ids) - held]
        return Batches(ids, context=options.context, batch_size=options.batch_size, seed=options.order_seed)

    def validation(self, options: RunOptions) -> Tensor:
        """The windows [n, context] at the end of the text that a run never trains on."""
        held = options.validation_windows * options.context
        return torch.as_tensor(self.ids[len(self.ids) - held :]).long().view(-1, options.context)


def initial_model(options: RunOptions) -> Any:
    """A new model of a run, on the CPU; torch's global generator is left as it was."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        return AutoModelForCausalLM.from_config(model_config(options), dtype=torch.float32)


class Stack:
    """Legs of one shape and length.  `materials`: the text of each leg.  `states`: whether trunks leave a state at each
    of their checkpoints, from which other branches can start."""

    def __init__(
        self,
        legs: list[Leg],
        materials: list[Material],
        out: Path,
        device: str,
        compiled: bool | None = None,
        states: bool = False,
    ) -> None:
        self.legs, self.out, self.device = legs, out, device
        options = [leg.run.options for leg in legs]
        self._materials, self._options = materials, options
        self.length = legs[0].end - legs[0].start
        self._model = StackedLlama(model_config(options[0]), device)
        layout = self._model.layout
        parts = [self._start(leg) for leg in legs]
        self.weights = torch.stack([weights for weights, _ in parts]).to(device).requires_grad_()
        self._optimizer = optimizers.make(
            options[0].optimizer,
            layout,
            device,
            [o.weight_decay for o in options],
            [o.betas for o in options],
            len(legs),
        )
        for name, moment in self._optimizer.moments.items():
            for row, (_, kept) in zip(moment, parts):
                if kept:
                    row.copy_(kept[name])
        self._averages = None if legs[0].branch else Averages(options[0], self.weights.detach())
        self._clips = torch.tensor([o.clip for o in options], device=device)
        self._precision = _precision_of(options, device)
        self._batches = [material.batches(o) for material, o in zip(materials, options)]
        self.step, self.logs, self.seconds = 0, [[] for _ in legs], 0.0
        on_cuda = device.startswith("cuda")
        self.compiled = on_cuda or self.length >= COMPILE_STEPS if compiled is None else compiled
        self._forward = torch.compile(self._model.losses) if self.compiled else self._model.losses
        trunks = [leg for leg in legs if not leg.branch]
        self._begins = {
            leg.name: {*branch_starts(leg.run).values(), *(leg.run.targets if states else ())} for leg in trunks
        }
        self._shell = initial_model(options[0])

    @property
    def id(self) -> str:
        """The name of its files in OUT/stacks."""
        return identity(self.legs)

    def folder(self, leg: Leg) -> Path:
        """The folder of a leg's run."""
        return self.out / "runs" / leg.run.name

    def _start(self, leg: Leg) -> tuple[Tensor, dict[str, Tensor]]:
        if not leg.start and leg.origin is None:
            return self._model.layout.row(initial_model(leg.run.options).state_dict()), {}
        kept = read_state(leg.origin or state_file(self.folder(leg), leg.start), "cpu", _REMEDY)
        return kept["weights"], kept["moments"]

    def train(self, progress: Progress | None = None) -> None:
        """Train from the last saved state, if there is one, to the end."""
        self._resume()
        last = time.monotonic()
        if not self.step:
            self._after_step()
        while self.step < self.length:
            self._advance()
            self._after_step()
            if time.monotonic() - last >= KEEP_SECONDS:
                self.seconds += time.monotonic() - last
                self._keep()
                last = time.monotonic()
            if progress:
                progress(self.step, self.length)
        self.seconds += time.monotonic() - last
        for leg, log in zip(self.legs, self.logs):
            name = f"log-annealed-{leg.branch}.jsonl" if leg.branch else "log.jsonl"
            self.folder(leg).mkdir(parents=True, exist_ok=True)
            write_whole(self.folder(leg) / name, "".join(json.dumps(entry) + "\n" for entry in log).encode())
        self.describe(done=True)
        (self.out / "stacks" / f"{self.id}.pt").unlink(missing_ok=True)

    def describe(self, done: bool) -> None:
        """Write the stack's JSON file."""
        about = {
            "legs": [leg.name for leg in self.legs], "done": done, "steps": self.length, "step": self.step,
            "seconds": self.seconds, "compiled": self.compiled, "device": self.device,
        }  # fmt: skip
        write_whole(self.out / "stacks" / f"{self.id}.json", (json.dumps(about, indent=1) + "\n").encode())

    def _advance(self) -> None:
        steps = [leg.start + self.step for leg in self.legs]
        rates = [leg.rate(step) for leg, step in zip(self.legs, steps)]
        self._set_precision()
        ids = torch.stack([batches.batch(step) for batches, step in zip(self._batches, steps)]).to(self.device)
        with self._autocast():
            losses = self._forward(self.weights, ids, self._precision)
        (gradients,) = torch.autograd.grad(losses.sum(), self.weights)
        with torch.no_grad():
            gradients = optimizers.clipped(gradients, self._clips)
            self._optimizer.step(self.weights.detach(), gradients, rates, [step + 1 for step in steps])
        self.step += 1
        if self.step % LOG_EVERY == 0 or self.step == 1:
            for log, step, loss, rate in zip(self.logs, steps, losses.tolist(), rates):
                log.append({"step": step + 1, "loss": loss, "learning_rate": rate})

    def _autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda"))

    def _set_precision(self) -> None:
        active = [leg.low_precision(leg.start + self.step) for leg in self.legs]
        self._precision.activate(torch.tensor(active, device=self.device))

    def _after_step(self) -> None:
        """Update averages; save the checkpoints and starts of branches that are due after this step."""
        if self._averages is not None and self.step:
            self._averages.update(self.weights.detach(), self.step)
        due = []
        for k, leg in enumerate(self.legs):
            at = leg.start + self.step
            if self.step and at in ((leg.branch,) if leg.branch else leg.run.targets):
                due.append(k)
            if at in self._begins.get(leg.name, ()):
                self._save_start(k, at)
        if due:
            self._save("", None, self.weights.detach(), due)
            for name, (about, weights) in (self._averages.found() if self._averages else {}).items():
                self._save(name, about, weights, due)

    def _save_start(self, k: int, step: int) -> None:
        moments = {name: rows[k].cpu().clone() for name, rows in self._optimizer.moments.items()}
        path = state_file(self.folder(self.legs[k]), step)
        with writing(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_state(path, {"weights": self.weights[k].detach().cpu().clone(), "moments": moments})

    def _save(self, average: str, about: dict[str, Any] | None, weights: Tensor, due: list[int]) -> None:
        losses = self._validate(weights)
        for k in due:
            leg, named = self.legs[k], self._model.layout.named(weights[k])
            self._shell.load_state_dict(named)
            state = self._state_of(k, about) | {name: values[k] for name, values in losses.items()}
            part = average or ("annealed" if leg.branch else "trunk")
            folder = self.folder(leg) / part / f"checkpoint-{leg.start + self.step}"
            save_checkpoint(folder, self._shell, self._materials[k].tokenizer, state)

    def _state_of(self, k: int, average: dict[str, Any] | None) -> dict[str, Any]:
        """What `trainer_state.json` says of a checkpoint."""
        leg, o, batches = self.legs[k], self._options[k], self._batches[k]
        step = leg.start + self.step
        phase = "annealed" if leg.branch else o.phase(step, leg.end)
        record = training_record(
            o,
            batches,
            step=step,
            max_steps=leg.run.targets[-1],
            rate=leg.rate(step - 1),
            phase="averaged" if average else phase,
            decay_steps=leg.end - leg.start if leg.branch else 0,
            log=self.logs[k],
        )
        return {
            **record,
            "average": average,
            "precision": {name: getattr(o, name) for name in PARTS},
            "precision_per": {name: getattr(o, f"{name}_per") for name in PARTS},
            "low_precision_share": o.low_precision_share,
            "in_low_precision": leg.low_precision(step - 1) and {o.weights, o.activations, o.kv} != {FULL},
            "optimizer": o.optimizer,
            "data_seed": o.order_seed,
        }

    def _validate(self, weights: Tensor) -> dict[str, list[float]]:
        """Losses on the windows kept out of training, in the runs' precision of this step and in full precision."""
        if not self._options[0].validation_windows:
            return {}
        held = torch.stack([material.validation(o) for material, o in zip(self._materials, self._options)])
        found = {}
        for name, precision in {"eval_loss": self._precision, "eval_loss_full_precision": Precision()}.items():
            total = torch.zeros(len(self.legs), device=self.device)
            with torch.no_grad(), self._autocast():
                for ids in held.split(self._options[0].batch_size, 1):
                    total += ids.shape[1] * self._model.losses(weights, ids.to(self.device), precision)
            found[name] = (total / held.shape[1]).tolist()
        return found

    def _keep(self) -> None:
        averages = self._averages.state if self._averages else None
        state = {
            "weights": self.weights.detach(), "moments": self._optimizer.moments, "averages": averages,
            "step": self.step, "logs": self.logs, "seconds": self.seconds,
        }  # fmt: skip
        write_state(self.out / "stacks" / f"{self.id}.pt", state)
        self.describe(done=False)

    def _resume(self) -> None:
        path = self.out / "stacks" / f"{self.id}.pt"
        if not path.exists():
            return
        kept = read_state(path, self.device, _REMEDY)
        with torch.no_grad():
            self.weights.copy_(kept["weights"])
        for name, moment in self._optimizer.moments.items():
            moment.copy_(kept["moments"][name])
        if self._averages:
            self._averages.state = kept["averages"]
        self.step, self.logs, self.seconds = kept["step"], kept["logs"], kept["seconds"]


def _precision_of(options: list[RunOptions], device: str) -> Precision:
    return Precision(
        *(
            Rounding.of([getattr(o, name) for o in options], getattr(options[0], f"{name}_per"), device)
            for name in PARTS
        )
    )
