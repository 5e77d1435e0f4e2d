"""Branches from a checkpoint of a trunk: the trunk itself continued, a decay of the learning rate, low precision.

A trunk can be continued where its run kept the state of the optimizer: every run keeps its last one, and all of them if
asked to (`states`); a study keeps those at which its annealed branches start.  What is trained next follows from the
step, because the order of the text is a function of seed and step.

    checkpoint-STEP ──Trunk──▶ legs ──stacks──▶ OUT/runs/NAME/{trunk,annealed}/checkpoint-END

A branch continues the trunk in everything that it does not change: the precision that was in use at the checkpoint, the
learning rate that the schedule has there.  A branch that is the last x % of its D ends at D/(1 − x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_eval import corpora
from ptq_eval.config.endings import BOTH, QAT, Branch
from ptq_eval.errors import ContinuationError, OptionError, OutputMismatchError
from ptq_eval.models.json_files import load_json
from ptq_eval.pretrain.architectures import model_config
from ptq_eval.pretrain.config import PretrainConfig
from ptq_eval.pretrain.data import encode
from ptq_eval.pretrain.saving import read_state, state_file, write_state, writing
from ptq_eval.pretrain.stacked.llama import Layout
from ptq_eval.pretrain.stacked.options import FULL, PARTS, PER_D, RunOptions
from ptq_eval.pretrain.stacked.plan import Leg, Run
from ptq_eval.pretrain.stacked.study import Progress, StudyOptions, train_legs
from ptq_eval.pretrain.stacked.trainer import Material, initial_model

_AVERAGES = "averages need no training: ptq-eval average FOLDER"


@dataclass(frozen=True, eq=False)
class Trunk:
    """A checkpoint of a trunk from which training can go on.

    `options` are those under which the trunk goes on; `weights` [P] and `moments` are its state after `step` steps.
    """

    run: Path
    step: int
    options: RunOptions
    text: str
    material: Material
    weights: Tensor
    moments: dict[str, Tensor]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step."""
        return self.options.context * self.options.batch_size


def read_trunk(folder: Path, text: str | None = None) -> Trunk:
    """The trunk at the checkpoint in `folder`; `text` is what it was trained on, by default what its run says.

    Raises ContinuationError where training cannot go on, OptionError where the text is another one, and
    UnreadableCheckpointError where a file is damaged.
    """
    run = folder.parent.parent
    about = run / "pretrain.json"
    if folder.parent.name != "trunk" or not about.is_file():
        raise ContinuationError(
            "not a checkpoint of the trunk of a run of `ptq-eval pretrain`, so its training cannot be continued",
            got=folder,
            allowed="RUN/trunk/checkpoint-STEP",
            remedy=_AVERAGES,
        )
    said, state = _read(about), _read(folder / "trainer_state.json")
    try:
        step, digest = int(state["global_step"]), said["token_digest"]
        options = _options(said["config"], bool(state.get("in_low_precision")))
    except (KeyError, TypeError, ValueError) as error:
        got = f"{folder}: {error!r}"
        raise ContinuationError("the run's files say too little", got=got, remedy=_AVERAGES) from None
    weights, moments = _state(run, step, options)
    _require_weights(folder, options, weights)
    spec = text or said.get("text")
    if spec is None:
        raise OptionError("the run does not say which text it was trained on", got=about, remedy="--text TEXT")
    return Trunk(run, step, options, spec, _material(folder, spec, options, digest), weights, moments)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ContinuationError("a file of the run cannot be read", got=f"{path}: {error}", remedy=_AVERAGES) from error
    if not isinstance(content, dict):
        raise ContinuationError("a file of the run is no JSON object", got=path, remedy=_AVERAGES)
    return content


def _options(config: dict[str, Any], in_low_precision: bool) -> RunOptions:
    """The options under which a trunk goes on: in the precision in use, at the rate of its schedule, without averages
    of its own."""
    if (got := config["architecture"]) != (known := PretrainConfig().architecture):
        what = "runs of this architecture cannot be continued"
        raise ContinuationError(what, got=got, allowed=known, remedy=_AVERAGES)
    if config["schedule"] in PER_D:
        raise ContinuationError(
            "the schedule of this run ends at its D, so that there is no trunk beyond it",
            got=config["schedule"],
            allowed="constant, inverse-sqrt, wsd",
            remedy=_AVERAGES,
        )
    options = RunOptions.of({"validation_windows": 0, **config})
    precision: dict[str, Any] = {} if in_low_precision else dict.fromkeys(PARTS, FULL)
    schedule = "constant" if options.schedule == "wsd" else options.schedule
    return replace(options, **precision, schedule=schedule, low_precision_share=1.0, ema=(), lawa=())


def _state(run: Path, step: int, options: RunOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights and moments after `step` steps.  Raises ContinuationError where they were not kept."""
    remedy = f"delete that file; {_AVERAGES}"
    for path in (state_file(run, step), run / "state.pt"):
        kept = read_state(path, "cpu", remedy) if path.is_file() else {}
        if "moments" in kept:
            return kept["weights"], kept["moments"]
        if kept.get("step") == step:
            return _converted(kept, options)
    there = sorted(int(path.stem.removeprefix("step-")) for path in run.glob("starts/step-*.pt"))
    raise ContinuationError(
        f"the state of the optimizer at step {step} was not kept, so the training cannot be continued from there",
        got=run,
        allowed=f"steps {', '.join(map(str, there))}" if there else "",
        remedy=f"train with --states (states = true in a study), or use the last checkpoint of a run; {_AVERAGES}",
    )


def _converted(kept: dict[str, Any], options: RunOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """The state of a single run, whose optimizer numbers parameters: matrices first, then vectors."""
    layout, parameters = Layout(model_config(options)), list(initial_model(options).named_parameters())
    order = [name for matrices in (True, False) for name, p in parameters if (p.dim() >= 2) is matrices]
    moments = {}
    for ours, theirs in (("mean", "exp_avg"), ("square", "exp_avg_sq")):
        by_name = {name: kept["optimizer"]["state"][place][theirs] for place, name in enumerate(order)}
        moments[ours] = layout.row(by_name)
    return layout.row(kept["model"]), moments


def _require_weights(folder: Path, options: RunOptions, weights: Tensor) -> None:
    """Raise ContinuationError where the checkpoint has other weights than the state that was kept."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        same = torch.equal(Layout(model_config(options)).row(load_file(path)), weights)
    except Exception as error:  # whatever is wrong with the file or with the names in it
        raise ContinuationError("the checkpoint cannot be read", got=f"{path}: {error}", remedy=_AVERAGES) from error
    if not same:
        what = "the checkpoint's weights are not those of the state that its run kept"
        raise ContinuationError(what, got=folder, remedy=_AVERAGES)


def _material(folder: Path, spec: str, options: RunOptions, digest: str) -> Material:
    from transformers import AutoTokenizer

    source = corpora.read(spec)
    if source.text is None:
        raise OptionError("the text of a training must be text, not token ids", got=spec, remedy="--text TEXT")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    material = Material(tokenizer, encode(tokenizer, source.text), source.digest)
    if material.batches(options).digest != digest:
        raise OptionError("the run was trained on another text", got=spec, remedy="--text TEXT, as it was then")
    return material


def legs(trunk: Trunk, wanted: Sequence[Branch], out: Path) -> dict[str, Leg]:
    """What is to be trained below `out`: each branch by its name, and as `trunk@END` the trunk itself to the end of
    each branch, so that both have seen the same text.  Raises OptionError for a branch that would train nothing."""
    start = out / "start.pt"
    found: dict[str, Leg] = {}
    at, origin = trunk.step, start
    for place, end in enumerate(sorted({branch.end(trunk.step) for branch in wanted})):
        leg = _leg(trunk, trunk.options, end, at, origin, stage=place)
        found[trunk_name(end)] = leg
        at, origin = end, state_file(out / "runs" / leg.run.name, end)
    for branch in wanted:
        options, end = trunk.options, branch.end(trunk.step)
        if branch.kind in (QAT, BOTH):
            _require_rounding(branch)
            options = replace(options, weights=branch.precision)
        if branch.decays:
            rate = options.learning_rate * options.factor(trunk.step, end)
            options = replace(options, schedule="wsd", learning_rate=rate)
        found[branch.name] = _leg(trunk, options, end, trunk.step, start, branch=end if branch.decays else 0)
    return found


def _require_rounding(branch: Branch) -> None:
    """Raise OptionError for quantization-aware training that rounds no weights."""
    if branch.precision == FULL:
        what = f"{branch.kind} trains with rounded weights, which {FULL} precision does not round"
        rounded = f"{branch.kind}:{100 * branch.amount:g}%@4"
        remedy = f"{rounded}, or decay:{100 * branch.amount:g}%" if branch.decays else rounded
        raise OptionError(what, got=branch.name, allowed="3 to 16 bits, or a number format", remedy=remedy)


def trunk_name(step: int) -> str:
    """What the trunk at a step is called among the legs."""
    return f"trunk@{step}"


def _leg(
    trunk: Trunk, options: RunOptions, end: int, start: int, origin: Path, *, branch: int = 0, stage: int = 0
) -> Leg:
    from ptq_eval.pretrain.architectures import counts

    ratio = end * trunk.tokens_per_step / counts(options)[0]
    return Leg(Run(replace(options, ratios=(ratio,)), trunk.text, (end,), stage), start, end, branch, origin)


def checkpoint_of(leg: Leg, out: Path) -> Path:
    """The folder of the checkpoint at the end of a leg."""
    return out / "runs" / leg.run.name / ("annealed" if leg.branch else "trunk") / f"checkpoint-{leg.end}"


def train(
    trunk: Trunk,
    wanted: Sequence[Branch],
    out: Path,
    *,
    device: str = "cpu",
    compiled: bool | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Train what is not there yet; the folder of the checkpoint at the end of each leg, by the names of `legs`.

    The same call goes on where one ended.  Raises OutputMismatchError where `out` has branches from another checkpoint.
    """
    found = legs(trunk, wanted, out)
    _keep_start(trunk, out)
    # what is complete is never trained again: in another stack its last bits may differ
    missing = [leg for leg in found.values() if not checkpoint_of(leg, out).is_dir()]
    if missing:
        options, material = StudyOptions(states=True), lambda _run: trunk.material
        train_legs(missing, options, out, material, device=device, compiled=compiled, progress=progress)
    return {name: checkpoint_of(leg, out) for name, leg in found.items()}


def _keep_start(trunk: Trunk, out: Path) -> None:
    path = out / "start.pt"
    if path.is_file():
        kept = read_state(path, "cpu", "delete that file")
        if kept["step"] == trunk.step and torch.equal(kept["weights"], trunk.weights):
            return
        raise OutputMismatchError(
            "the output folder has branches from another checkpoint",
            got=f"step {trunk.step} of {trunk.run}",
            allowed=f"step {kept['step']} of {kept['run']}",
            remedy="choose another -o",
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    state = {"weights": trunk.weights, "moments": trunk.moments, "step": trunk.step, "run": str(trunk.run)}
    write_state(path, state)


def averages_saved(run: Path, step: int) -> dict[str, Path]:
    """The averages that a run saved beside its trunk at a step, by name: `ema-0.999`, `lawa-8`."""
    found = [*run.glob(f"ema-*/checkpoint-{step}"), *run.glob(f"lawa-*/checkpoint-{step}")]
    return {path.parent.name: path for path in sorted(found)}
