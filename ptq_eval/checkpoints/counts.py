"""Counts of steps and tokens that the files of a checkpoint state, each with the reason where it is unknown.

A count that no training can have (negative, fractional, beyond all sizes) is as unknown as one that is absent: a wrong
D cannot be seen in a result, a question for D can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ptq_eval.checkpoints.base import ASK_TOKENS, EACH_D, UNKNOWN_TOKENS
from ptq_eval.checkpoints.growth import BATCH
from ptq_eval.records import Checkpoint

MOST_STEPS = 10**9
MOST_TOKENS = 10**15
COUNT_IGNORED = "count_ignored"


def count_in(
    content: Mapping[str, Any], name: str, where: str, least: int = 0, most: int = MOST_STEPS
) -> tuple[int | None, str]:
    """(an entry that is a whole number, ""), or (None, the reason); `where` says what `content` is.

    A text of digits and a float without a fraction are read as the number that they are.
    """
    value = content.get(name)
    if value is None:
        return None, f"{where} has no {name}"
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    number = int(number) if isinstance(number, float) and number % 1 == 0 else number
    if type(number) is int and least <= number <= most:
        return number, ""
    return None, f"{name} of {where} is {repr(value)[:40]}, not a whole number from {least} to {most:,}"


def product_in(content: Mapping[str, Any], *names: str, where: str) -> tuple[int | None, str]:
    """(the product of entries that are whole numbers from 1 on, ""), or (None, the reason)."""
    total = 1
    for name in names:
        number, reason = count_in(content, name, where, least=1, most=MOST_TOKENS)
        if number is None:
            return None, reason
        total *= number
    return total, ""


def with_tokens(step: int | None, per_step: int | None, note: str, *, lacks: str = "", **others: Any) -> Checkpoint:
    """A checkpoint at a step, with D = step × tokens per step where both are known.

    lacks: why one of them is not known.
    """
    if step is not None and step > MOST_STEPS:
        step, lacks = None, f"step {step} is more than any training has"
    if step is not None and per_step is not None and step * per_step > MOST_TOKENS:
        per_step, lacks = None, f"{note} = {per_step:,} tokens per step make more tokens than any training has"
    if step is None or per_step is None:
        question = ASK_TOKENS if step is not None else f"give {EACH_D}"
        return Checkpoint(
            "", step, None, None, tokens_note=f"{lacks}; {question}" if lacks else UNKNOWN_TOKENS, **others
        )
    text = f"{note} = {per_step:,} tokens per step"
    known: dict[str, Any] = {"tokens_source": "derived", "tokens_note": text, "tokens_counter": BATCH}
    return Checkpoint("", step, step * per_step, None, **known, **others)


def with_count(checkpoint: Checkpoint, content: Mapping[str, Any], name: str, where: str) -> Checkpoint:
    """With the exact D that an entry counts, if there is one; the reason, where it is a count that no training has."""
    least = 1 if checkpoint.step else 0
    tokens, reason = count_in(content, name, where, least=least, most=MOST_TOKENS)
    if tokens is not None:
        note = f"{name} of {where}"
        return replace(checkpoint, tokens=tokens, tokens_source="explicit", tokens_note=note, tokens_counter="")
    if content.get(name) is None:
        return checkpoint
    if checkpoint.tokens is None:
        return replace(checkpoint, tokens_note=f"{reason}; {ASK_TOKENS}")
    return checkpoint.with_problem(COUNT_IGNORED, f"{reason}; D is {checkpoint.tokens_note} instead")
