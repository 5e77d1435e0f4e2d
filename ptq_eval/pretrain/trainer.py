"""The training loop: AdamW, one schedule, checkpoints at chosen D/N; a resumed run is bit-identical on one machine.

`saving` describes the output: checkpoints as HF Trainer writes them, with the tokens seen, the learning rate and the
phase of the schedule, and one optimizer state for resuming.  The loop is not meant for large models: it makes real
trajectories on a laptop's CPU, or within minutes on one GPU.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ptq_eval.pretrain.architectures import counts, model_config
from ptq_eval.pretrain.config import PretrainConfig
from ptq_eval.pretrain.data import Batches, encode, train_tokenizer
from ptq_eval.pretrain.saving import (
    describe,
    described,
    keep_state,
    kept_state,
    require_same,
    save_checkpoint,
    state_file,
    training_record,
    write_folder,
    write_state,
    write_whole,
    writing,
)
from ptq_eval.pretrain.schedule import branch_factor, branch_start, factor, phase
from ptq_eval.pretrain.stacked.options import FULL, PARTS

Progress = Callable[[int, int, float], None]
"""progress(steps done, total steps, last loss)."""

_FIXED = {"optimizer": "adamw", "precision": dict.fromkeys(PARTS, FULL), "in_low_precision": False}
"""What a study chooses, and a single run does not."""


@dataclass
class _State:
    model: Any
    optimizer: torch.optim.Optimizer
    step: int
    log: list[dict[str, Any]]


class _Run:
    """One trunk and, for wsd, its annealed branches."""

    def __init__(
        self, config: PretrainConfig, text: str, about: dict[str, str], out: Path, device: str, compiled: bool
    ) -> None:
        self.config, self.out, self.device, self.compiled = config, out, device, compiled
        # An invalid model or an output folder of another run is refused before anything is written.
        self.model_config = model_config(config)
        require_same(out, config=asdict(config))
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self._tokenizer(text)
        self.batches = Batches(
            encode(self.tokenizer, text),
            context=config.context,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        model, params = self._new_model(), counts(config)
        self.tokens_per_step = config.context * config.batch_size
        steps = (max(1, round(ratio * params[0] / self.tokens_per_step)) for ratio in config.ratios)
        self.targets = sorted(set(steps))
        self.state = _State(model, self._optimizer(model), 0, [])
        self._forward = self._compile(model)
        describe(out, config, self.batches, steps_saved=self.targets, params=params, text=about, device=device)

    def _tokenizer(self, text: str) -> Any:
        from transformers import AutoTokenizer

        folder = self.out / "tokenizer"
        # Without pretrain.json, the options that a tokenizer was trained with are unknown.
        if described(self.out) is None or not folder.exists():
            tokenizer = train_tokenizer(text, self.config.vocab)
            write_folder(folder, tokenizer.save_pretrained)
        return AutoTokenizer.from_pretrained(folder)

    def _new_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        # Initialisation draws from torch's global generator: fork it, so the caller's state does not change.
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            model = AutoModelForCausalLM.from_config(self.model_config, dtype=torch.float32)
        return model.to(self.device).train()

    def _optimizer(self, model: Any) -> torch.optim.Optimizer:
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        first, second = self.config.betas
        return torch.optim.AdamW(groups, lr=0.0, betas=(first, second), fused=True)

    def _compile(self, model: Any) -> Any:
        return torch.compile(model) if self.compiled else model

    def advance(self, state: _State, forward: Any, rate: float) -> float:
        """Take one optimizer step at learning rate `rate`.  Returns the loss before it, nats per token, or NaN for the
        steps at which it is not logged."""
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        ids = self.batches.batch(state.step).to(self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda")):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.step % 50 == 0 or state.step == 1:
            value = loss.item()
            state.log.append({"step": state.step, "loss": value, "learning_rate": rate})
            return value
        return math.nan

    def save(self, state: _State, run: str, phase_name: str, rate: float, decay_steps: int = 0) -> None:
        """Write `checkpoint-STEP` atomically."""
        record = training_record(
            self.config,
            self.batches,
            step=state.step,
            max_steps=self.targets[-1],
            rate=rate,
            phase=phase_name,
            decay_steps=decay_steps,
            log=state.log,
        )
        folder = self.out / run / f"checkpoint-{state.step}"
        save_checkpoint(folder, state.model, self.tokenizer, {**record, **_FIXED, "data_seed": self.config.seed})

    def keep(self, state: _State) -> None:
        """Save the state from which the run can be resumed, replacing the previous one."""
        keep_state(self.out, self._kept(state))

    def keep_for_branches(self, state: _State) -> None:
        """Save the state at a checkpoint, beside those of the others."""
        path = state_file(self.out, state.step)
        with writing(self.out):
            path.parent.mkdir(exist_ok=True)
        write_state(path, self._kept(state))

    def _kept(self, state: _State) -> dict[str, Any]:
        own = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
        return {**own, "step": state.step, "log": state.log}

    def resume(self) -> None:
        """Load the last saved state, if there is one."""
        kept = kept_state(self.out, self.device)
        if kept is not None:
            self.state.model.load_state_dict(kept["model"])
            self.state.optimizer.load_state_dict(kept["optimizer"])
            self.state.step, self.state.log = kept["step"], kept["log"]

    def branch(self, end: int, progress: Progress | None) -> None:
        """Train an annealed branch: from the trunk's current state, with a rate that is zero at step `end`."""
        if (self.out / "annealed" / f"checkpoint-{end}").exists():
            return
        model = self._new_model()
        model.load_state_dict(self.state.model.state_dict())
        optimizer = self._optimizer(model)
        # load_state_dict keeps references: without a copy, the branch would change the trunk's moments
        optimizer.load_state_dict(copy.deepcopy(self.state.optimizer.state_dict()))
        state = _State(model, optimizer, self.state.step, list(self.state.log))
        forward, start, rate = self._compile(model), self.state.step, 0.0
        while state.step < end:
            rate = self.config.learning_rate * branch_factor(state.step, start=start, end=end)
            loss = self.advance(state, forward, rate)
            if progress:
                progress(self.state.step, self.targets[-1], loss)
        self.save(state, "annealed", "annealed", rate, end - start)

    def train(self, progress: Progress | None, states: bool = False) -> None:
        """Train from the current state to the last target; `states`: keep one at each checkpoint of the trunk."""
        config, total = self.config, self.targets[-1]
        branches: dict[int, list[int]] = {}
        for end in self.targets if config.schedule == "wsd" else ():
            start = branch_start(end, warmup=config.warmup, decay=config.decay)
            branches.setdefault(start, []).append(end)
        while True:
            step = self.state.step
            for end in branches.get(step, ()):
                self.branch(end, progress)
            if step >= total:
                break
            rate = config.learning_rate * factor(config.schedule, step, warmup=config.warmup, total=total)
            loss = self.advance(self.state, self._forward, rate)
            if progress:
                progress(self.state.step, total, loss)
            if self.state.step in self.targets:
                if states:
                    self.keep_for_branches(self.state)
                self.save(self.state, "trunk", phase(config.schedule, self.state.step, warmup=config.warmup), rate)
            if self.state.step in self.targets or self.state.step % 500 == 0:
                self.keep(self.state)
        log = "".join(json.dumps(entry) + "\n" for entry in self.state.log)
        write_whole(self.out / "log.jsonl", log.encode())


def pretrain(
    config: PretrainConfig,
    text: str,
    out: str | Path,
    *,
    source: str = "",
    digest: str = "",
    device: str = "cpu",
    compiled: bool | None = None,
    states: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train on `text` and save a trajectory under `out`; the same call resumes an interrupted run.

    `source` and `digest` say which text it is.  `states` keeps the optimizer's state at each checkpoint of the trunk.
    `compiled` uses torch.compile (default: on CUDA).  On CUDA, matrix products are in bfloat16 under autocast, with
    float32 weights.  Returns `out`.  Raises OptionError if `out` holds another run, and OutputFullError if it cannot be
    written.
    """
    compiled = device.startswith("cuda") if compiled is None else compiled
    about = {"text_digest": digest, **({"text": source} if source else {})}
    run = _Run(config, text, about, Path(out), device, compiled)
    run.resume()
    run.train(progress, states)
    return Path(out)
