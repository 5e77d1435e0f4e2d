"""The training loop: AdamW, one schedule, checkpoints at given D/N, resumable to the bit on one machine.

Checkpoints are folders as HF Trainer writes them (`checkpoint-STEP` with model.safetensors, config.json, the
tokenizer and trainer_state.json), with the tokens seen, the learning rate and the schedule phase stated.  Optimizer
state is kept once, beside them, for resuming only.  The loop is not meant to train large models: it exists so that
real trajectories can be made on a laptop's CPU, or within minutes on one GPU.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ptq_eval.errors import OptionError
from ptq_eval.pretrain.architectures import configuration
from ptq_eval.pretrain.data import SMALLEST_VOCAB, Batches, encode, train_tokenizer
from ptq_eval.pretrain.schedule import SCHEDULES, Schedule, branch_factor, factor, phase

Progress = Callable[[int, int, float], None]
"""progress(steps done, steps in all, last loss)."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that determines the weights.  `ratios` are the values of D/N to save; N is non-embedding."""

    architecture: str = "llama"
    width: int = 64
    layers: int = 3
    vocab: int = 1024
    context: int = 128
    batch_size: int = 32
    ratios: tuple[float, ...] = (5, 9, 16, 28, 50, 90, 160, 240, 320, 400)
    schedule: Schedule = "constant"
    learning_rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(sorted(set(self.ratios))))
        if not self.ratios or self.ratios[0] <= 0:
            raise OptionError("--ratios must be positive values of D/N", got=self.ratios or "none")
        if self.schedule not in SCHEDULES:
            raise OptionError("unknown --schedule", got=self.schedule, allowed=", ".join(SCHEDULES))
        if self.vocab < SMALLEST_VOCAB:
            raise OptionError("--vocab is too small", got=self.vocab, allowed=f"at least {SMALLEST_VOCAB}")


@dataclass
class _State:
    model: Any
    optimizer: torch.optim.Optimizer
    step: int
    log: list[dict[str, Any]]


class _Run:
    """One trunk and, for wsd, its annealed branches."""

    def __init__(self, config: PretrainConfig, text: str, digest: str, out: Path, device: str, compiled: bool) -> None:
        self.config, self.out, self.device, self.compiled = config, out, device, compiled
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self._tokenizer(text)
        model_config = configuration(
            config.architecture,
            width=config.width,
            layers=config.layers,
            vocab=config.vocab,
            context=config.context,
        )
        self.model_config = model_config
        self.batches = Batches(
            encode(self.tokenizer, text),
            context=config.context,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        model = self._new_model()
        self.params = non_embedding(model)
        self.tokens_per_step = config.context * config.batch_size
        steps = (max(1, round(ratio * self.params / self.tokens_per_step)) for ratio in config.ratios)
        self.targets = sorted(set(steps))
        self.state = _State(model, self._optimizer(model), 0, [])
        self._forward = self._compile(model)
        self._describe(digest)

    def _tokenizer(self, text: str) -> Any:
        from transformers import AutoTokenizer

        folder = self.out / "tokenizer"
        if not folder.exists():
            partial = folder.with_name(".tokenizer.partial")
            train_tokenizer(text, self.config.vocab).save_pretrained(partial)
            partial.rename(folder)
        return AutoTokenizer.from_pretrained(folder)

    def _new_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        # Initialisation draws from torch's global generator: fork it, so that the caller's is left alone.
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
        return torch.optim.AdamW(groups, lr=0.0, betas=self.config.betas, fused=True)

    def _compile(self, model: Any) -> Any:
        return torch.compile(model) if self.compiled else model

    def _describe(self, digest: str) -> None:
        about = {
            "config": asdict(self.config),
            "text_digest": digest,
            "token_digest": self.batches.digest,
            "tokens_per_epoch": self.batches.epoch_tokens,
            "tokens_per_step": self.tokens_per_step,
            "params_non_embedding": self.params,
            "params_total": sum(p.numel() for p in self.state.model.parameters()),
            "steps_saved": self.targets,
            "epochs": self.targets[-1] * self.tokens_per_step / self.batches.epoch_tokens,
            "device": self.device,
            "dtype": "bfloat16 autocast" if self.device.startswith("cuda") else "float32",
            "torch": torch.__version__,
        }
        path = self.out / "pretrain.json"
        about = json.loads(json.dumps(about))
        if path.exists():
            old = json.loads(path.read_text())
            if any(old[name] != about[name] for name in ("config", "token_digest")):
                raise OptionError(
                    "the output folder holds a training run of other options or other text",
                    got=self.out,
                    remedy="choose another folder, or delete it",
                )
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(about, indent=2) + "\n")
        partial.replace(path)

    def advance(self, state: _State, forward: Any, rate: float) -> float:
        """One optimizer step at learning rate `rate`; the loss before it, nats per token."""
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

    def save(self, state: _State, run: str, phase_name: str, rate: float) -> None:
        """Write `checkpoint-STEP`, whole or not at all."""
        folder = self.out / run / f"checkpoint-{state.step}"
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        state.model.save_pretrained(partial)
        self.tokenizer.save_pretrained(partial)
        trainer_state = {
            "global_step": state.step,
            "max_steps": self.targets[-1],
            "num_input_tokens_seen": state.step * self.tokens_per_step,
            "train_batch_size": self.config.batch_size,
            "learning_rate": rate,
            "schedule": self.config.schedule,
            "schedule_phase": phase_name,
            "log_history": [*state.log, {"step": state.step, "learning_rate": rate}],
        }
        (partial / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)

    def keep(self, state: _State) -> None:
        """Write the state that resuming needs, replacing the last one atomically."""
        path = self.out / "state.pt"
        torch.save(
            {
                "model": state.model.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "step": state.step,
                "log": state.log,
            },
            path.with_suffix(".new"),
        )
        path.with_suffix(".new").replace(path)

    def resume(self) -> None:
        """Take up the last kept state, if there is one."""
        path = self.out / "state.pt"
        if path.exists():
            kept = torch.load(path, weights_only=True, map_location=self.device)
            self.state.model.load_state_dict(kept["model"])
            self.state.optimizer.load_state_dict(kept["optimizer"])
            self.state.step, self.state.log = kept["step"], kept["log"]

    def branch(self, end: int, progress: Progress | None) -> None:
        """An annealed branch: from the trunk as it stands now, linearly to zero at step `end`."""
        if (self.out / "annealed" / f"checkpoint-{end}").exists():
            return
        model = self._new_model()
        model.load_state_dict(self.state.model.state_dict())
        optimizer = self._optimizer(model)
        # load_state_dict keeps references: without a copy the branch would train the trunk's moments
        optimizer.load_state_dict(copy.deepcopy(self.state.optimizer.state_dict()))
        state = _State(model, optimizer, self.state.step, list(self.state.log))
        forward, start, rate = self._compile(model), self.state.step, 0.0
        while state.step < end:
            rate = self.config.learning_rate * branch_factor(state.step, start=start, end=end)
            loss = self.advance(state, forward, rate)
            if progress:
                progress(self.state.step, self.targets[-1], loss)
        self.save(state, "annealed", "annealed", rate)

    def train(self, progress: Progress | None) -> None:
        """From where the state stands to the last target."""
        config, total = self.config, self.targets[-1]
        branches: dict[int, list[int]] = {}
        for end in self.targets if config.schedule == "wsd" else ():
            start = min(end - 1, max(config.warmup, round((1 - config.decay) * end)))
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
                self.save(self.state, "trunk", phase(config.schedule, self.state.step, warmup=config.warmup), rate)
            if self.state.step in self.targets or self.state.step % 500 == 0:
                self.keep(self.state)
        (self.out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in self.state.log))


def non_embedding(model: Any) -> int:
    """True non-embedding parameters of a model: all but nn.Embedding tables and the output head."""
    outside = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        outside.add(id(head.weight))
    return sum(p.numel() for p in model.parameters() if id(p) not in outside)


def pretrain(
    config: PretrainConfig,
    text: str,
    out: str | Path,
    *,
    digest: str = "",
    device: str = "cpu",
    compiled: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train on `text` and save a trajectory under `out`; the same call takes up an interrupted run.

    `compiled` wraps the model in torch.compile (default: on CUDA).  On CUDA, matrices multiply in bfloat16 under
    autocast with float32 weights.  Returns `out`.  Raises OptionError when `out` holds another run.
    """
    compiled = device.startswith("cuda") if compiled is None else compiled
    run = _Run(config, text, digest, Path(out), device, compiled)
    run.resume()
    run.train(progress)
    return Path(out)
