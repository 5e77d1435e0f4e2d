"""nanochat's checkpoints: `base_checkpoints/d12/model_000500.pt`, each with a `meta_000500.json`.

D = step × total_batch_size.  The batch is in the meta file since February 2026, before that among the options of the
training script; an option of -1 means that it was chosen automatically and not recorded.  Checkpoints of midtraining,
fine-tuning and reinforcement learning count their steps from 0 again and see other data: they are excluded.

The file does not say which version of nanochat's code wrote it.  The names and shapes of its tensors do, mostly:

A  to January 2026       neither resid_lambdas nor value_embeds
B  11 to 16 January      resid_lambdas, no value_embeds
C  to 9 March            gates of value embeddings with 32 inputs
D  9 to 14 March         with 12 inputs
E  since                 smear_gate

Between 3 and 9 March (within C) logits were capped at 20 instead of 15, which no name shows; `architecture:
{softcap: 20}` in a trajectory.yaml says so, and likewise any other entry of `NanochatConfig`.  Source: the history of
nanochat/gpt.py up to commit 92d63d4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ptq_eval.checkpoints.converted import ConvertedFormat, mapping_of, part_of
from ptq_eval.checkpoints.counts import MOST_TOKENS, count_in, with_tokens
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.models.configuration import NANOCHAT
from ptq_eval.models.tiktoken import read_encoding, tokenizer_files
from ptq_eval.records import Checkpoint

BOS = "<|bos|>"
"""The token before each document."""
_WEIGHTS = re.compile(r"model_(\d{6,})\.pt")
_BESIDE = re.compile(r"(meta_\d{6,}\.json|optim_\d{6,}(_rank\d+)?\.pt)")
_LATER = {
    "mid_checkpoints": "midtraining",
    "chatsft_checkpoints": "fine-tuning",
    "chatrl_checkpoints": "reinforcement learning",
}
"""Folders of checkpoints of what follows pretraining."""
_SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
_PREFIX = "_orig_mod."
"""Before the names of tensors where torch.compile's wrapper was saved."""


@dataclass(frozen=True)
class Era:
    """What a version of nanochat's code fixes; `short_window` gives the tokens of a short window by sequence_len."""

    short_window: Callable[[int], int]
    rope_theta: float = 10_000.0
    rope_table: str = "bfloat16"
    qk_scale: float = 1.0
    gate_range: float = 2.0


_TILE = 128
"""Short windows are rounded up to a multiple of this since March 2026."""

ERAS = {
    "A": Era(lambda length: 0),
    "B": Era(lambda length: length // 2),
    "C": Era(lambda length: length // 2),
    "D": Era(lambda length: -(-length // 3 // _TILE) * _TILE, 100_000.0, "", 1.15, 3.0),
    "E": Era(lambda length: -(-length // 4 // _TILE) * _TILE, 100_000.0, "", 1.2, 3.0),
}
_ERA_OF_GATE = {32: "C", 12: "D"}
"""By the inputs of the gates of value embeddings."""


class Nanochat(ConvertedFormat):
    """`model_NNNNNN.pt` with `meta_NNNNNN.json`."""

    name = "nanochat"
    looks_like = "model_NNNNNN.pt with meta_NNNNNN.json"
    configuration = "model_config of meta_NNNNNN.json"
    takes_architecture = True

    def discover(self, root: Path) -> list[Checkpoint]:
        """The checkpoints in `root`, one for each file of weights, with D where the meta file says the batch."""
        names = [child.name for child in root.iterdir() if child.is_file()]
        if not any(map(_BESIDE.fullmatch, names)):
            return []
        return [self.found(root / match[0], int(match[1])) for match in map(_WEIGHTS.fullmatch, names) if match]

    def sources(self, place: Path) -> list[Path]:
        """Weights, meta file and tokenizer."""
        return [path for path in (place, _meta_path(place), _tokenizer_of(place)) if path is not None]

    def about(self, place: Path) -> Checkpoint:
        """Step, D, phase, and what nanochat measured; with a fatal problem where it is not of pretraining."""
        meta, step = _meta_of(place), int(place.stem.partition("_")[2])
        if stage := _later_stage(place, meta):
            message = f"a checkpoint of {stage}, which follows pretraining on other data; its steps count from 0 again"
            remedy = "give the folder of base_checkpoints"
            return Checkpoint("", step, None, None, stage=stage).with_problem(
                "not_pretraining", message, fatal=True, remedy=remedy
            )
        per_step, source, lacks = _tokens_per_step(meta)
        bits = meta.get("val_bpb")
        checkpoint = with_tokens(
            step,
            per_step,
            f"step × {source}",
            lacks=lacks,
            epochs=_epoch(meta),
            schedule_phase=_phase(meta, step),
            stated_bits_per_byte=bits if isinstance(bits, float) and 0 < bits < 100 else None,
        )
        said, _ = count_in(meta, "step", _meta_path(place).name)
        if said != step:
            message = f"{_meta_path(place).name} says step {meta.get('step')!r}, the name {step}"
            return checkpoint.with_problem("step_disagrees", message, fatal=True)
        return checkpoint

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """nanochat's configuration, a link to the weights, and the tokenizer."""
        shapes, prefixed = _shapes(place)
        texts = {"config.json": json.dumps(configuration(shapes, _sizes(place, _meta_of(place)), given))}
        links, tensors = {"pytorch_model.bin": place}, {}
        if prefixed:
            from ptq_eval.models.pickles import load_pickle

            links, tensors = {}, {name.removeprefix(_PREFIX): tensor for name, tensor in load_pickle(place).items()}
        tokenizer = _tokenizer_of(place)
        if tokenizer is not None and tokenizer.suffix == ".json":
            links[tokenizer.name] = tokenizer
        elif tokenizer is not None:
            texts |= tokenizer_files(read_encoding(tokenizer), BOS)
        return Content(texts, links, tensors)


def configuration(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a config.json for tensors of these shapes and a `model_config`; `given` replaces entries.

    Raises UnsupportedModelError for a version that was in use for a few hours or days, and for an unknown one.
    """
    given = dict(given or {})
    era = given.pop("era", None) or _era(shapes)
    if era not in ERAS:
        raise UnsupportedModelError("unknown era of nanochat in `architecture`", got=era, allowed=", ".join(ERAS))
    own, rows = ERAS[era], shapes.get("transformer.wte.weight", (0,))[0]
    if rows < sizes["vocab_size"]:
        what = "model_config says a larger vocabulary than the embedding has rows"
        raise UnreadableCheckpointError(
            what, got=sizes["vocab_size"], allowed=f"at most {rows}", remedy="fetch both again"
        )
    layers = {int(match[1]) for name in shapes if (match := re.match(r"transformer\.h\.(\d+)\.", name))}
    if layers and max(layers) + 1 != sizes["n_layer"]:
        what = "model_config of the meta file and the weights disagree on n_layer"
        allowed = f"{max(layers) + 1}, the layers of the weights"
        raise UnreadableCheckpointError(what, got=sizes["n_layer"], allowed=allowed, remedy="fetch both again")
    content = {
        "model_type": NANOCHAT,
        "architectures": ["NanochatForCausalLM"],
        **sizes,
        "padded_vocab_size": rows,
        "window_pattern": sizes.get("window_pattern") or "L",
        "short_window": own.short_window(sizes["sequence_len"]),
        "rope_theta": own.rope_theta,
        "rope_table": own.rope_table,
        "qk_scale": own.qk_scale,
        "gate_range": own.gate_range,
        "softcap": 15.0,
        "residual_weights": "resid_lambdas" in shapes,
        "gate_channels": next((shape[1] for name, shape in shapes.items() if name.endswith("ve_gate.weight")), 0),
        "smear": "smear_gate.weight" in shapes,
        "backout": "backout_lambda" in shapes,
        "era": era,
    }
    if unknown := sorted(given.keys() - content.keys()):
        what = "`architecture` in trajectory.yaml has unknown entries"
        raise UnsupportedModelError(what, got=", ".join(unknown), allowed=", ".join(sorted(content)))
    return content | given


def _era(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The version of nanochat's code that has tensors of these names and shapes."""
    gates = {shape[-1] for name, shape in shapes.items() if name.endswith("ve_gate.weight") and shape}
    embedded = [name for name in shapes if re.match(r"value_embeds?\b", name)]
    if "smear_gate.weight" in shapes:
        return "E"
    if len(gates) == 1 and (era := _ERA_OF_GATE.get(min(gates))):
        return era
    if gates or embedded or any("engram" in name for name in shapes):
        raise UnsupportedModelError(
            "a version of nanochat that was in use for hours or days only",
            got=", ".join(sorted([*embedded, *(f"gates of {size} inputs" for size in gates)])[:3]) or "engram",
            allowed="versions A to E of docs/nanochat.md",
            remedy="measure checkpoints of another version",
        )
    return "B" if "resid_lambdas" in shapes else "A"


def _meta_path(path: Path) -> Path:
    return path.with_name(path.name.replace("model_", "meta_", 1)).with_suffix(".json")


def _meta_of(path: Path) -> dict[str, Any]:
    """The meta file of a file of weights.  Raises UnreadableCheckpointError."""
    meta = _meta_path(path)
    if not meta.is_file():
        remedy = "copy it beside the weights; nanochat writes both at each save"
        raise UnreadableCheckpointError(f"{path.name} has no {meta.name}", remedy=remedy)
    return mapping_of(meta)


def _sizes(path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a meta file's `model_config`.  Raises UnreadableCheckpointError."""
    stated = part_of(meta, "model_config")
    wrong = [name for name in _SIZES if type(stated.get(name)) is not int or stated[name] < 1]
    pattern = stated.get("window_pattern", "L")
    if wrong or not isinstance(pattern, str) or not re.fullmatch("[SLsl]+", pattern):
        name = wrong[0] if wrong else "window_pattern"
        raise UnreadableCheckpointError(
            f"model_config of {_meta_path(path).name} has no valid {name}",
            got=repr(stated.get(name)),
            allowed="the letters S and L" if name == "window_pattern" else "whole numbers from 1 on",
            remedy="fetch the file again",
        )
    return {**{name: stated[name] for name in _SIZES}, "window_pattern": pattern}


def _shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], bool]:
    """The shapes of the tensors of a file by name, and whether names have torch.compile's prefix; no content is read.

    Raises UnreadableCheckpointError and UnsafeCheckpointError.
    """
    from ptq_eval.models.pickles import load_pickle

    tensors = load_pickle(path, "meta")
    prefixed = any(name.startswith(_PREFIX) for name in tensors)
    return {name.removeprefix(_PREFIX): tuple(value.shape) for name, value in tensors.items()}, prefixed


def _tokenizer_of(path: Path) -> Path | None:
    """The tokenizer's file: in `tokenizer/` of the base folder (`base/base_checkpoints/d12/…`), or nearer."""
    names = ("tokenizer.json", "tokenizer.pkl")
    places: Iterator[Path] = (
        place / sub / name for place in path.absolute().parents[:3] for sub in (".", "tokenizer") for name in names
    )
    return next((place for place in places if place.is_file()), None)


def _later_stage(path: Path, meta: Mapping[str, Any]) -> str:
    """What followed pretraining and wrote this checkpoint; "" for pretraining, whose meta files alone have a batch."""
    if stage := next((_LATER[part] for part in path.parts if part in _LATER), ""):
        return stage
    return "" if {"device_batch_size", "max_seq_len", "total_batch_size"} & meta.keys() else "fine-tuning"


def _tokens_per_step(meta: Mapping[str, Any]) -> tuple[int | None, str, str]:
    """(total_batch_size in tokens, where it is from, why it is not known)."""
    size, reason = count_in(meta, "total_batch_size", "the meta file", least=1, most=MOST_TOKENS)
    if size is not None:
        return size, "total_batch_size", ""
    option, other = count_in(part_of(meta, "user_config"), "total_batch_size", "user_config", least=1, most=MOST_TOKENS)
    if option is not None:
        return option, "total_batch_size of user_config", ""
    return None, "", other if "total_batch_size" not in meta else reason


def _epoch(meta: Mapping[str, Any]) -> float | None:
    """How often the training text was begun, where the state of the data loader says so."""
    epoch = part_of(meta, "dataloader_state_dict").get("epoch")
    return float(epoch) if isinstance(epoch, int) and epoch >= 1 else None


def _phase(meta: Mapping[str, Any], step: int) -> str:
    """The phase of the schedule, where the number of steps was given; "" otherwise.

    The rate rises linearly, stays, and falls linearly over the last `warmdown_ratio` of the steps.
    """
    options = part_of(meta, "user_config")
    steps, down = options.get("num_iterations"), options.get("warmdown_ratio")
    if not isinstance(steps, int) or steps <= 0 or not _is_share(down):
        return ""
    if step >= steps:
        return "annealed"
    if step > steps - round(down * steps):
        return "decay"
    ratio = options.get("warmup_ratio", 0)
    up = options.get("warmup_steps", round(ratio * steps) if _is_share(ratio) else None)
    return "warmup" if isinstance(up, int) and step < up else "constant"


def _is_share(value: Any) -> TypeGuard[float]:
    """Whether an option is a number from 0 to 1."""
    return isinstance(value, (int, float)) and 0 <= value <= 1
