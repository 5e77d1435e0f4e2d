"""The mean of several checkpoints' weights, as a checkpoint.

Parameters are added up in float32 and stored in float32: rounding a mean back to bfloat16 would be a small quantization
of its own.  Parameters that are tied are stored once.  Buffers are not averaged; they, the configuration, the tokenizer
and code are those of the last checkpoint.  What no parameter of the model takes is dropped.

A few gigabytes of tensors are in memory at a time, and of checkpoints that are pickles one whole file.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.account import load_account
from ptq_eval.checkpoints.base import local_path
from ptq_eval.checkpoints.staging import Content
from ptq_eval.checkpoints.weights import TORCH_TYPES
from ptq_eval.errors import UnsupportedModelError
from ptq_eval.models.blueprint import Blueprint, blueprint
from ptq_eval.models.loading import tokenizer_files, tokenizer_folder
from ptq_eval.models.pickles import load_pickle
from ptq_eval.models.weight_files import find_weights
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 4_000_000_000
"""Bytes of a file of weights, unless one tensor alone is larger."""
AVERAGED = "averaged"
"""The schedule's phase of an average."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_BESIDE = ("config.json", "generation_config.json", "chat_template.jinja", "*.py")


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: its type as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True)
class _Member:
    """One checkpoint: its tensors, and the names of those that are parameters, and of those that are buffers."""

    name: str
    folder: Path
    tensors: Mapping[str, _Stored]
    parameters: frozenset[str]
    buffers: frozenset[str]
    plan: Blueprint

    @property
    def parameters_once(self) -> list[str]:
        """The stored names of parameters, one for each tensor that the model has."""
        module = self.plan.module
        bare = lambda name: name.removeprefix(f"{module.base_model_prefix}.")
        tensor_of = {bare(name): id(own) for name, own in module.named_parameters(remove_duplicate=False)}
        listed = {bare(name) for name, _ in module.named_parameters()}  # a shared parameter appears once
        first: dict[Any, str] = {}
        for name in sorted(self.parameters, key=lambda name: (bare(name) not in listed, name)):
            first.setdefault(tensor_of.get(bare(name), name), name)
        return sorted(first.values())


def write_average(members: Sequence[Checkpoint], folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write the mean of verified checkpoints of one run into `folder`; the last of them says what is not averaged.

    Raises UnsupportedModelError where they do not have the same parameters as plain floats, and what reading them
    raises.
    """
    read = [_member(checkpoint, trust_remote_code) for checkpoint in members]
    names = read[-1].parameters_once
    shapes = {name: read[-1].tensors[name].shape for name in names}
    for other in read[:-1]:
        if odd := [name for name in names if name not in other.parameters or other.tensors[name].shape != shapes[name]]:
            what = "checkpoints that do not have the same parameters have no average"
            raise UnsupportedModelError(what, got=f"{odd[0]} of {other.name} and {read[-1].name}")
    folder.mkdir(parents=True)
    _copy_beside(read[-1].folder, folder)
    about = {"kind": "mean", "checkpoints": len(members), "steps": [checkpoint.step for checkpoint in members]}
    state = {
        "global_step": members[-1].step or 0,
        "num_input_tokens_seen": members[-1].tokens or 0,
        "schedule_phase": AVERAGED,
        "average": about,
    }
    Content({"trainer_state.json": json.dumps(state, indent=1) + "\n"}).write(folder)
    _write_weights(read, names, folder)


def averaged(members: Sequence[Checkpoint], run: str, folder: Path) -> Checkpoint:
    """The record of an average that is in `folder`: it ends at the D of its last member."""
    last = members[-1]
    return replace(
        last,
        run=run,
        location=str(folder),
        format="hf_trainer",
        revision=folder.name,
        schedule_phase=AVERAGED,
        weights_sha="",
        family="",
        commit="",
        architecture_given=(),
        problems=(),
    )


def _member(checkpoint: Checkpoint, trust: bool) -> _Member:
    folder = local_path(checkpoint)
    tensors = {name: own for file in find_weights(folder).files for name, own in _stored(file)}
    plan = blueprint(folder, trust)
    account = load_account(plan, {name: (own.dtype, own.shape) for name, own in tensors.items()})
    if odd := [name for name in sorted(account.parameters) if tensors[name].dtype not in _FLOATS]:
        what = f"{checkpoint.name} has parameters that are no plain floats, which cannot be averaged"
        raise UnsupportedModelError(what, got=f"{odd[0]} as {tensors[odd[0]].dtype}", allowed=", ".join(_FLOATS))
    buffers = frozenset(tensors) - account.parameters - set(account.surplus)
    return _Member(checkpoint.name, folder, tensors, account.parameters, buffers, plan)


def _stored(file: Path) -> Iterator[tuple[str, _Stored]]:
    """The tensors of a file, without their content."""
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - no dict, and cannot be iterated
                part = stream.get_slice(name)
                yield name, _Stored(part.get_dtype(), tuple(part.get_shape()), file)
        return
    for name, tensor in load_pickle(file, "meta").items():
        kind = str(tensor.dtype).removeprefix("torch.")
        yield name, _Stored(TORCH_TYPES.get(kind, kind), tuple(tensor.shape), file)


def _copy_beside(source: Path, folder: Path) -> None:
    """Copy configuration, code and tokenizer, which may be in the run's folder."""
    home = tokenizer_folder(source)
    files = [path for pattern in _BESIDE for path in source.glob(pattern)]
    for path in [*files, *(tokenizer_files(home) if home is not None else [])]:
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _write_weights(members: Sequence[_Member], names: Sequence[str], folder: Path) -> None:
    from safetensors.torch import save_file

    last = members[-1]
    shards = list(_shards(last, [*names, *sorted(last.buffers)]))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        part = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        tensors = _means(members, [name for name in shard if name in last.parameters])
        tensors |= dict(_tensors(last, [name for name in shard if name in last.buffers]))
        own = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(own, folder / f"model{part}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(shard, f"model{part}.safetensors")
    if len(shards) > 1:
        content = json.dumps({"metadata": {}, "weight_map": index}, indent=1) + "\n"
        Content({"model.safetensors.index.json": content}).write(folder)


def _shards(member: _Member, names: Sequence[str]) -> Iterator[list[str]]:
    """Names in files of at most `SHARD` bytes of float32."""
    shard: list[str] = []
    total = 0
    for name in names:
        size = 4 * math.prod(member.tensors[name].shape)
        if shard and total + size > SHARD:
            yield shard
            shard, total = [], 0
        shard.append(name)
        total += size
    yield shard


def _means(members: Sequence[_Member], names: Sequence[str]) -> dict[str, Tensor]:
    """The means of some parameters, float32."""
    total: dict[str, Tensor] = {}
    for member in members:
        for name, tensor in _tensors(member, names):
            total[name] = total[name].add_(tensor.float()) if name in total else tensor.float().clone()
    return {name: tensor.div_(len(members)) for name, tensor in total.items()}


def _tensors(member: _Member, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Some of a checkpoint's tensors; of safetensors one at a time."""
    from safetensors import safe_open

    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(member.tensors[name].file, []).append(name)
    for file, own in by_file.items():
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stream:
                for name in own:
                    yield name, stream.get_tensor(name)
        else:
            content = load_pickle(file)
            yield from ((name, content[name]) for name in own)
