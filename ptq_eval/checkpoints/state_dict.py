"""Files that hold tensors alone (`model_1000.pt`, `step_1000/model/…/sdp_00.pt`), with a configuration that is given.

What `--architecture` gives, a config.json of transformers or a type of model, is the configuration.  The tensors may be
in a state dict of their own or beside others (`{"model": …, "optimizer": …}`), in one file or in several that are
numbered (`model-00001-of-00002.safetensors`), below a prefix (`module.`, `model.transformer.`), and be called as in
transformers, as in Meta's Llama or as in fairseq2.  Whichever way most names
are parameters of the model is taken; what then lacks or is left over is for `verify` to say.  The step is in the name
of the file or of a folder above it, else in the file (`step`, `global_step`, `iteration` …).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints import labels, numbered
from ptq_eval.checkpoints.architecture import WHOLE, given_entries
from ptq_eval.checkpoints.base import UNKNOWN_STEP, UNKNOWN_TOKENS, Position, read_label
from ptq_eval.checkpoints.converted import ConvertedFormat
from ptq_eval.checkpoints.counts import count_in, with_tokens
from ptq_eval.checkpoints.layouts import META_LLAMA, in_halves, matched
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.models.pickles import is_state, load_content, unwrapped
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_FILE = re.compile(r".+\.(pt|pth|bin|ckpt|safetensors)")
_OTHER = re.compile(
    r"optim|rng|random_state|scheduler|training_args|tokenizer|scaler|sampler|trainer|data_?(reader|loader)"
)
"""Names of files and folders beside the weights."""
_SHARD = re.compile(r"(?P<whole>.+)-\d+-of-(?P<count>\d+)(?P<kind>\.\w+)")
"""Names of the parts of a state dict, each with some of its tensors."""
_LAST = re.compile(r"(final|best|last|latest|main|release)\b.*", re.IGNORECASE)
_DEPTH = 4
"""How many folders below the one with the step a file may be."""
_STEPS = ("step", "global_step", "iteration", "iter_num", "num_updates", "iter")
_STATES = ("model", "state_dict", "model_state_dict", "module", "weights")
"""Entries that hold the model where several hold tensors, an average of the weights for example."""
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AT = r"decoder\.layers\.(\d+)\."
_FAIRSEQ2_LLAMA = (
    (r"decoder_frontend\.embed\.weight", "model.embed_tokens.weight"),
    (r"decoder\.layer_norm\.weight", "model.norm.weight"),
    (r"final_proj\.weight", "lm_head.weight"),
    (_AT + r"self_attn\.([qkv])_proj\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (_AT + r"self_attn\.output_proj\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"self_attn_layer_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (_AT + r"ffn_layer_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (_AT + r"ffn\.gate_proj\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (_AT + r"ffn\.inner_proj\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (_AT + r"ffn\.output_proj\.weight", r"model.layers.\1.mlp.down_proj.weight"),
)
_IN_PAIRS = (META_LLAMA, _FAIRSEQ2_LLAMA)
"""Other names, of models whose RoPE rotates neighbours."""
_HEADS = {"q": "num_attention_heads", "k": "num_key_value_heads"}
_AS_CONV1D = re.compile(r"(transformer\.)?h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""Matrices that GPT-2 of transformers keeps as [in, out], and those who write it anew as [out, in]."""


class StateDict(ConvertedFormat):
    """Any file of tensors."""

    name = "state_dict"
    looks_like = "a file of tensors (.pt, .ckpt, .safetensors), with --architecture CONFIG"
    configuration = "the --architecture that is given"
    takes_architecture = True
    needs_architecture = True

    def discover(self, root: Path) -> list[Checkpoint]:
        """The files in `root`, and in folders there that a step or a word such as `final` names."""
        files = _wholes(path for path in sorted(root.iterdir()) if _may_hold_weights(path))
        read = labels.read_siblings(map(_stem, files))  # ckpt_100, ckpt_200: they differ in their number
        found = []
        for path in files:
            own = numbered.place(root.name, stem, read[stem]) if (stem := _stem(path)) in read else None
            own = own or (read_label(root.parent.name, root.name) if len(files) == 1 else None)
            found.append(self._placed(path, root, own))
        for folder in sorted(root.iterdir()):
            inside = folder.is_dir() and (read_label(root.name, folder.name) or _LAST.fullmatch(folder.name))
            if not inside or folder.is_symlink() or _OTHER.search(folder.name.lower()):
                continue
            if own := _wholes(sorted(_below(folder, _DEPTH))):
                checkpoint = self._placed(own[0], root, read_label(root.name, folder.name))
                if len(own) > 1:
                    what = f"several files of {folder.name} hold tensors"
                    got = ", ".join(path.relative_to(folder).as_posix() for path in own[:3])
                    error = UnreadableCheckpointError(what, got=got)
                    remedy = "keep the model's alone; put shards together with the library that wrote them"
                    checkpoint = checkpoint.with_problem("unreadable", error.fault, fatal=True, remedy=remedy)
                found.append(checkpoint)
        return found

    def _placed(self, path: Path, root: Path, position: Position | None) -> Checkpoint:
        """A file's checkpoint, at the position that a name says."""
        checkpoint = self.found(path, position.step if position else None)
        checkpoint = replace(checkpoint, revision=path.relative_to(root).with_name(_stem(path)).as_posix())
        if position is None:
            unsaid = checkpoint.step is None and checkpoint.tokens_note == UNKNOWN_TOKENS
            return replace(checkpoint, tokens_note=UNKNOWN_STEP) if unsaid else checkpoint
        return _at(checkpoint, position)

    def about(self, place: Path) -> Checkpoint:
        """The step that the file itself says; D is unknown."""
        content = _content(place, "meta") if place.suffix != ".safetensors" else {}
        entries = content if isinstance(content, dict) else {}
        name = next((name for name in _STEPS if entries.get(name) is not None), None)
        step, lacks = count_in(entries, name, "the file") if name else (None, "")
        return with_tokens(step, None, "", lacks=lacks)

    def sources(self, place: Path) -> list[Path]:
        """The file, or all parts of the state dict."""
        return _parts(place)

    def tokenizer_homes(self, place: Path) -> tuple[Path, ...]:
        """The folders up to the run's."""
        return tuple(place.parents[: _DEPTH + 1])

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration as it is given, and the tensors by transformers' names."""
        config = given_entries(given)
        return Content({"config.json": json.dumps(config)}, tensors=_named(_state(place), config, place.name))


def _may_hold_weights(path: Path) -> bool:
    return _FILE.fullmatch(path.name) is not None and not _OTHER.search(path.name.lower()) and path.is_file()


def _below(folder: Path, levels: int) -> Iterator[Path]:
    """The files of tensors in a folder and below it."""
    for child in folder.iterdir():
        if _may_hold_weights(child):
            yield child
        elif levels and child.is_dir() and not _OTHER.search(child.name.lower()):
            yield from _below(child, levels - 1)


def _shard(path: Path) -> tuple[str, ...] | None:
    """What all parts of a state dict have in their names: stem, number of parts, ending; None for a whole one."""
    match = _SHARD.fullmatch(path.name)
    return match.group("whole", "count", "kind") if match else None


def _stem(path: Path) -> str:
    return own[0] if (own := _shard(path)) else path.stem


def _wholes(paths: Iterable[Path]) -> list[Path]:
    """The files that hold a state dict, the first alone of those that are its parts."""
    return list({(path.parent, _shard(path) or path.name): path for path in reversed([*paths])}.values())[::-1]


def _parts(place: Path) -> list[Path]:
    """The files of the state dict that `place` holds, or is the first part of."""
    if (own := _shard(place)) is None:
        return [place]
    return sorted(path for path in place.parent.iterdir() if _shard(path) == own)


def _at(checkpoint: Checkpoint, position: Position) -> Checkpoint:
    """At a position; where a name counts something else, the step is the file's, if it says one."""
    known = position.unit != "step" and checkpoint.step is not None
    return replace(
        checkpoint,
        step=checkpoint.step if known else position.step,
        tokens=position.tokens,
        tokens_source=position.source,
        tokens_note=position.note,
        stage=position.stage,
    )


def _content(place: Path, device: str = "cpu") -> Any:
    """What a file holds.  Raises UnreadableCheckpointError and UnsafeCheckpointError."""
    if place.suffix != ".safetensors":
        return load_content(place, device)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place)
    except (SafetensorError, OSError) as error:
        what = f"{place.name} is truncated or corrupt"
        raise UnreadableCheckpointError(what, got=str(error)[:160], remedy="fetch it again") from error


def _state(place: Path) -> dict[str, Tensor]:
    """The tensors of a state dict.  Raises UnreadableCheckpointError where a part is missing or repeats a tensor."""
    parts, own, found = _parts(place), _shard(place), {}
    if own is not None and len(parts) != int(own[1]):
        what = f"{len(parts)} of the {int(own[1])} parts of {own[0]}{own[2]} are there"
        raise UnreadableCheckpointError(what, got=", ".join(path.name for path in parts[:3]), remedy="fetch the others")
    for part in parts:
        content = _content(part)
        entries = content if isinstance(content, dict) else {}
        named = next((entries[name] for name in _STATES if entries.get(name) and is_state(entries[name])), None)
        tensors = unwrapped(content if named is None else named, part.name)
        if twice := sorted(found.keys() & tensors.keys()):
            what = "a tensor is in several parts, which this format does not put together"
            remedy = "put them together with the library that wrote them"
            raise UnreadableCheckpointError(what, got=f"{twice[0]} in {part.name}", remedy=remedy)
        found |= tensors
    return found


def _named(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors by the names that the model has for them.

    Raises UnsupportedModelError for a configuration without a model, UnreadableCheckpointError where no name is known.
    """
    built, shapes = _built(config)
    bare = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    ways: list[tuple[dict[str, Tensor], bool]] = []
    for own in _without_prefixes(bare):
        ways += [(own, False), *((matched(own, rules), True) for rules in _IN_PAIRS)]
    found, in_pairs = max(ways, key=lambda way: len(shapes.keys() & way[0].keys()))
    if 4 * len(shapes.keys() & found.keys()) < len(shapes):  # which has most parameters by two names
        what = f"the tensors of {where} are not called as those of {config[WHOLE]}"
        raise UnreadableCheckpointError(
            what,
            got=", ".join(sorted(tensors)[:3]),
            allowed=", ".join(sorted(shapes)[:3]),
            remedy="rename them, or give the --architecture that they are of",
        )
    if in_pairs:
        heads = {part: getattr(built, name, None) for part, name in _HEADS.items()}
        found = {name: _rotated(name, tensor, heads, where) for name, tensor in found.items()}
    found = _as_conv1d(found, shapes)
    return _apart(found)


def _as_conv1d(tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """GPT-2's matrices as [in, out], where the shape of the first says that they are [out, in]."""
    matrices = [name for name in tensors if _AS_CONV1D.fullmatch(name)]
    first = next((name for name in matrices if name in shapes and "c_attn" in name), None)
    if first is None or tuple(tensors[first].shape) == shapes[first]:
        return tensors
    return {name: tensor.T if name in matrices else tensor for name, tensor in tensors.items()}


def _built(config: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The configuration as transformers has it, and the shapes of the model's parameters by name, with and without the
    prefix of its body."""
    from ptq_eval.models.blueprint import Blueprint
    from ptq_eval.models.configuration import of_content

    if not isinstance(config.get(WHOLE), str):
        raise UnsupportedModelError(f"the configuration that was given has no {WHOLE}", got=repr(config.get(WHOLE)))
    content = dict(config)
    built = of_content(content)
    module = Blueprint(built, content=content).module
    prefix = f"{module.base_model_prefix}."
    shapes = {name: tuple(own.shape) for name, own in module.named_parameters(remove_duplicate=False)}
    return built, {**{name.removeprefix(prefix): shape for name, shape in shapes.items()}, **shapes}


def _without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors as they are called, and without each prefix that all of them share."""
    names = dict(tensors)
    while True:
        yield names
        firsts = {name.partition(".")[0] for name in names}
        if len(firsts) != 1 or not all("." in name for name in names):
            return
        names = {name.partition(".")[2]: tensor for name, tensor in names.items()}


def _rotated(name: str, tensor: Tensor, heads: Mapping[str, Any], where: str) -> Tensor:
    match = re.search(r"self_attn\.([qk])_proj\.weight$", name)
    if match is None:
        return tensor
    count = heads[match[1]]
    if type(count) is not int or count < 1 or len(tensor) % (2 * count):
        what = f"{name} in {where} cannot have so many heads"
        raise UnreadableCheckpointError(what, got=count, allowed=f"divisors of {len(tensor) // 2}")
    return in_halves(tensor, count)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own, as safetensors stores them."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found
