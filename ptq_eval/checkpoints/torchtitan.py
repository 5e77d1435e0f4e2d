"""torchtitan's checkpoints of Llama: `step-1000/` with `.metadata` and `__0_0.distcp` (DCP).

The folder does not say how many heads there are, nor which RoPE: give `architecture: {num_attention_heads: 32}` in a
`trajectory.yaml`, with rope_theta (500,000), rms_norm_eps (1e-5) or max_position_embeddings (8,192) where they differ
from Llama 3's.  D is `ntokens_seen` of the trainer's state where one rank alone trained, since each rank stores its own
count; otherwise give --tokens-per-step.  torchtitan rotates neighbouring channels and transformers halves of a head,
which is another order of the rows of the query and key matrices.  Source: torchtitan 0.3.0,
models/llama3/state_dict_adapter.py; names before that version are read too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints.converted import ConvertedFolders
from ptq_eval.checkpoints.counts import with_count, with_tokens
from ptq_eval.checkpoints.dcp import METADATA, Stored, read_index, read_tensors
from ptq_eval.checkpoints.layouts import META_LLAMA, in_halves, renamed
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

_EMBEDDING = re.compile(r"(?:model\.)?tok_embeddings\.weight")
_OTHERS = re.compile(r"(optimizer|lr_scheduler|train_state|dataloader)\b.*|.*freqs_cis")
"""What is stored beside the model."""
_HEADS = "num_attention_heads"
_TAKEN = {_HEADS, "rope_theta", "rms_norm_eps", "max_position_embeddings"}


class TorchTitan(ConvertedFolders):
    """`step-N/.metadata`."""

    name = "torchtitan"
    looks_like = "step-N/.metadata"
    configuration = "the `architecture` that is given"
    label = re.compile(r"step-(\d+)")
    takes_architecture = True

    def holds(self, place: Path) -> bool:
        """Whether the name and a file of DCP are as torchtitan's."""
        return self.step_of(place) is not None and (place / METADATA).is_file()

    def sources(self, place: Path) -> list[Path]:
        """The files of the checkpoint."""
        return sorted(path for path in place.iterdir() if path.is_file())

    def about(self, place: Path) -> Checkpoint:
        """Step and D; whether this is torchtitan's at all is for `content` to say."""
        index = read_index(place)
        checkpoint = with_tokens(self.step_of(place), None, "")
        ranks = {piece.file.split("_")[2] for stored in index.values() for piece in stored.pieces}  # __RANK_N.distcp
        seen = next((name for name in index if name.endswith("ntokens_seen")), None)
        if seen is None or len(ranks) != 1:
            return checkpoint
        stated = {"ntokens_seen": read_tensors(place, seen.__eq__)[seen].item()}
        return with_count(checkpoint, stated, "ntokens_seen", f"{METADATA}, of one rank")

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration and tensors of Llama."""
        index = {name: stored for name, stored in read_index(place).items() if not _OTHERS.fullmatch(name)}
        if not any(map(_EMBEDDING.fullmatch, index)):
            raise UnsupportedModelError(
                "a distributed checkpoint of another model than torchtitan's Llama",
                got=", ".join(sorted(index)[:3]),
                remedy=f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} "
                f"{place}/pytorch_model.bin, under the names that transformers has, with a config.json beside it",
            )
        config = _configuration(index, given)
        tensors = renamed(read_tensors(place, index.__contains__), META_LLAMA, where=METADATA)
        heads = {"q": config[_HEADS], "k": config["num_key_value_heads"]}
        for name in tensors:
            if match := re.fullmatch(r".*\.self_attn\.([qk])_proj\.weight", name):
                tensors[name] = in_halves(tensors[name], heads[match[1]])
        return Content({"config.json": json.dumps(config)}, tensors=tensors)


def _configuration(index: Mapping[str, Stored], given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that follows from shapes and what was given.  Raises UnreadableCheckpointError."""
    remedy = f"""give --architecture '{{"{_HEADS}": N}}', or a trajectory.yaml with architecture: {{{_HEADS}: N}}"""
    if unknown := sorted(given.keys() - _TAKEN):
        what = "`architecture` in trajectory.yaml has unknown entries"
        raise UnsupportedModelError(what, got=", ".join(unknown), allowed=", ".join(sorted(_TAKEN)))
    numbers = {name: float(value) for name, value in given.items()}
    rows = {re.sub(r".*\.", "", name.removesuffix(".weight")): stored.shape for name, stored in index.items()}
    vocabulary, width = rows["tok_embeddings"]
    heads = int(numbers.get(_HEADS, 0))
    if heads < 1:
        what = "a checkpoint of torchtitan does not say how many heads the model has"
        raise UnreadableCheckpointError(what, remedy=remedy)
    if rows["wq"][0] % heads or rows["wk"][0] % (size := rows["wq"][0] // heads):
        what = f"the matrices cannot have so many heads ({_HEADS})"
        raise UnreadableCheckpointError(what, got=heads, allowed=f"divisors of {rows['wq'][0]}", remedy=remedy)
    layers = {int(match[1]) for name in index if (match := re.match(r"(?:model\.)?layers\.(\d+)\.", name))}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        _HEADS: heads,
        "num_key_value_heads": rows["wk"][0] // size,
        "head_dim": size,
        "intermediate_size": rows["w1"][0],
        "rms_norm_eps": numbers.get("rms_norm_eps", 1e-5),
        "rope_theta": numbers.get("rope_theta", 500_000.0),
        "max_position_embeddings": int(numbers.get("max_position_embeddings", 8192)),
        "tie_word_embeddings": not any(re.fullmatch(META_LLAMA[2][0], name) for name in index),
    }
