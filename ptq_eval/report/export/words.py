"""Why a file format cannot hold a layer, in words."""

from __future__ import annotations

from ptq_eval.models.refusal import Obstacle, Refusal

SENTENCES = {
    Obstacle.NOT_INTEGERS: "it holds integers, not {format}",
    Obstacle.NO_SUCH_BITS: "it has no codes of {bits} bits, only of {widths}",
    Obstacle.CONV1D: "it holds nn.Linear layers, not the Conv1D layers of GPT-2",
    Obstacle.PARTIAL_GROUP: "a row of {columns} weights is no multiple of the group size {group_size}",
    Obstacle.PARTIAL_WORD: "{count} {what} of {bits} bits do not fill whole words of {word} bits",
    Obstacle.REORDERED_GROUPS: "it has no place for groups of reordered columns: use act_order=false, or groups of a "
    "whole row",
    Obstacle.LARGE_SCALE: "a scale of {scale:.3g} is too large for float16",
    Obstacle.INPUT_SCALES: "it has no place for the scales of input channels that AWQ keeps in the layer",
    Obstacle.FREE_ZEROS: "its zero points are codes, and HQQ's are real numbers",
    Obstacle.NO_SUCH_TYPE: "it has no type for {format}, only for {types}",
    Obstacle.PARTIAL_BLOCK: "a row of {columns} weights is no multiple of its blocks of {block}",
    Obstacle.MIXTURE: "it has one number format for all layers, and these have {schemes}",
    Obstacle.ARCHITECTURE: "models of type {model_type!r} are not written, only {known}",
    Obstacle.ACTIVATION: "the activation {activation!r} is not the one that llama.cpp has for this architecture",
    Obstacle.ROTARY_EMBEDDING: "rotary embeddings of type {type!r} are not written, only those without scaling",
    Obstacle.SLIDING_WINDOW: "attention within a window of {window} tokens is not written",
    Obstacle.UNKNOWN_SOURCE: "what precedes {layer} is not known for a model of type {model_type!r}",
    Obstacle.UNEQUAL_SCALES: "{layer} and {sibling} have the same input and not the same scales",
    Obstacle.SHARED_OUTPUTS: "{source} has {outputs} outputs, which several of {inputs} inputs share",
    Obstacle.INDIVISIBLE_SCALES: "the scales of {source} are of format {format} and cannot be divided",
}


def reason(refusal: Refusal) -> str:
    """The refusal as the end of a sentence about the format."""
    facts = {name: ", ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in refusal.facts.items()}
    return SENTENCES[refusal.kind].format(**facts)
