"""Read the numbers in the name of a checkpoint's folder or revision: a step, an epoch, tokens, a stage.

A number means what the word beside it says: `step_98`, `iter_0000098`, `checkpoint-98-hf`, `98`, `epoch_1`, `ep0-ba98`,
`stage2-ingredient1-step1000-tokens5B`, `step-480k-token-1007B`, `1000step`, `240b_tokens`.  What is left of the
name without those numbers is its stem, and folders with the same stem belong to one run.  A number beside an
unknown word (`model_100`) counts only where siblings differ in it, see `read_siblings`; words that distinguish runs
(`seed1`, `v2`, `lr3`) and sizes (`1.1B`, `160m`) stay in the stem.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["step", "epoch", "number"]
"""What a checkpoint is numbered by: optimizer steps, epochs, or a number whose meaning is not known."""

_WORDS = {
    "step": "step steps globalstep gstep iter iters iteration iterations update updates ba checkpoint",
    "number": "ckpt ckpts ckp chkpt chk checkpoints snapshot",
    "epoch": "epoch epochs ep",
    "tokens": "token tokens tok toks",
    "stage": "stage phase ingredient",
    "fixed": "seed seeds run exp experiment trial version v rank fold lr bs wd ctx seq len layers heads dim d n h l "
    "size gpu node replica try attempt",
}
_MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER = re.compile(
    r"(?P<word>[a-z]*)[-_.=: ]*(?<![0-9])(?P<digits>[0-9]+(?:\.[0-9]+)?)"
    r"(?:(?P<suffix>[kmbgt])(?P<unit>t|tok|tokens?)?(?![a-z]))?"
    r"(?=(?:[-_ ]?(?P<after>[a-z]+)(?![a-z])(?![-_.=: ]*[0-9]))?)",
    re.IGNORECASE,
)
_NAMED_STAGES = ("pretrain", "midtrain", "anneal", "decay", "cooldown")
"""Words at the start of a name that say a stage of training, in order of training."""
_NAMED_STAGE = re.compile(rf"({'|'.join(_NAMED_STAGES)})[-_]", re.IGNORECASE)
_DATE = re.compile(r"[12][0-9]{3}[-_][01]?[0-9][-_][0-3]?[0-9]")
_HASH = re.compile(r"(?=.*[a-f])[0-9a-f]{7,64}")
_SEPARATORS = "-_.=: "
_SCORE = re.compile(
    r"[-_]*(?:(?:val|valid|validation|eval|train)[-_])?(?:loss|consumed_samples)[-_=][0-9]+\.[0-9]+(?![0-9])",
    re.IGNORECASE,
)
"""A loss or a count of samples that a name also gives (NeMo): it differs between the checkpoints of one run."""
_FAIRSEQ = re.compile(r"checkpoint_([0-9]+)_([0-9]+)")
_TOKENS_SEEN = re.compile(r"(tokens?)[-_]?seen", re.IGNORECASE)


@dataclass(frozen=True)
class Label:
    """What a name says.  `rounding` is one unit of the last digit of `tokens`; `stem` is what a run shares."""

    stem: str
    step: int | None = None
    unit: Unit = "step"
    tokens: int | None = None
    rounding: int = 0
    stage: str = ""


@dataclass(frozen=True)
class _Number:
    """A number in a name: what it counts ("" where nothing says so), and where it and its word are."""

    value: int
    rounding: int
    suffix: str
    meaning: str
    word: str
    start: int
    end: int
    word_start: int


def read(name: str) -> Label | None:
    """The label in `name`, or None where no word of it says what a number counts."""
    name = _SCORE.sub("", name)
    if fairseq := _FAIRSEQ.fullmatch(name):
        name = fairseq.expand(r"checkpoint_epoch\1_update\2")
    name = _TOKENS_SEEN.sub(r"\1", name)
    numbers = _numbers(name)
    steps = sorted((n for n in numbers if n.meaning == "step"), key=lambda n: n.word == "checkpoint")
    others = [n for meaning in ("number", "epoch") for n in numbers if n.meaning == meaning]
    step = next(iter([*steps, *others]), None)
    tokens = next((n for n in numbers if n.meaning == "tokens"), None)
    if tokens is None and step is not None:
        tokens = next((n for n in numbers if n.start > step.start and not n.word and n.suffix in ("b", "t")), None)
    if step is None and tokens is None:
        return None
    return _label(name, numbers, step, tokens)


def read_siblings(names: Iterable[str]) -> dict[str, Label]:
    """The labels of sibling names; a number beside an unknown word counts where names differ in it."""
    labels: dict[str, Label] = {}
    groups: dict[str, dict[str, _Number]] = defaultdict(dict)
    for name in names:
        if label := read(name):
            labels[name] = label
            continue
        for number in _numbers(name):
            if not number.meaning and (not number.suffix or (number.start, number.end) == (0, len(name))):
                groups[f"{name[: number.start]}/{name[number.end :]}"][name] = number
    for group in sorted(groups.values(), key=len, reverse=True):
        unread = {name: number for name, number in group.items() if name not in labels}
        for name, number in unread.items() if len(unread) > 1 else ():
            counts_tokens = number.suffix in ("b", "t")
            labels[name] = _label(name, [], None if counts_tokens else number, number if counts_tokens else None)
    return _without_shared_totals(labels)


def _without_shared_totals(labels: dict[str, Label]) -> dict[str, Label]:
    """Without a count that all steps of a run share though it cannot hold for all: the total of the training."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, label in labels.items():
        groups[label.stem].append(name)
    for names in groups.values():
        steps = [step for name in names if (step := labels[name].step)]
        first = labels[names[0]]
        if first.tokens is None or len(steps) < 2 or {labels[name].tokens for name in names} != {first.tokens}:
            continue
        if max(steps) * (first.tokens - first.rounding) > min(steps) * (first.tokens + first.rounding):
            labels |= {name: replace(labels[name], tokens=None, rounding=0) for name in names}
    return labels


def stage_order(stage: str) -> tuple[object, ...]:
    """A key by which the stages of a training sort: stage2 before stage10, pretraining before annealing."""
    rank = _NAMED_STAGES.index(stage) if stage in _NAMED_STAGES else -1
    return rank, *(int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", stage))


def counts(word: str) -> bool:
    """Whether a word says nothing but what the number beside it counts."""
    return _MEANINGS.get(word, "fixed" if word not in ("", "global", "main") else "") != "fixed"


def _numbers(name: str) -> list[_Number]:
    """The whole numbers in a name, those of dates and hashes excepted."""
    if _HASH.fullmatch(name):
        return []
    masked = _DATE.sub(lambda date: "x" * len(date[0]), name)
    return [number for match in _NUMBER.finditer(masked) if (number := _number(match)) is not None]


def _number(match: re.Match[str]) -> _Number | None:
    suffix = (match["suffix"] or "").lower()
    digits, _, decimals = match["digits"].partition(".")
    value, remainder = divmod(int(digits + decimals) * _FACTORS[suffix], 10 ** len(decimals))
    if remainder or (decimals and not suffix):
        return None
    end = max(match.end(group) for group in ("digits", "suffix", "unit"))
    return _Number(
        value=value,
        rounding=_FACTORS[suffix] // 10 ** len(decimals),
        suffix=suffix,
        meaning=_meaning(match),
        word=match["word"].lower(),
        start=match.start("digits"),
        end=end,
        word_start=match.start(),
    )


def _meaning(match: re.Match[str]) -> str:
    """What a number counts, by its unit, the word before it, the word after it, or its being the whole name."""
    if match["unit"]:
        return "tokens"
    before, after = (_MEANINGS.get((match[side] or "").lower(), "") for side in ("word", "after"))
    if before or after in ("step", "epoch", "tokens"):
        return before or after
    return "step" if match[0] == match.string and match["digits"] == match[0] else ""


def _label(name: str, numbers: Sequence[_Number], step: _Number | None, tokens: _Number | None) -> Label:
    stages = [number for number in numbers if number.meaning == "stage"]
    named = _NAMED_STAGE.match(name)
    stage = "-".join(f"{number.word}{number.value}" for number in stages) or (named[1].lower() if named else "")
    gone = {number: number.word_start for number in numbers if number.meaning in ("stage", "tokens", "epoch")}
    gone |= {number: number.start for number in numbers if number.meaning in ("step", "number")}
    gone |= {number: number.word_start for number in (tokens,) if number}
    gone |= {number: number.start for number in (step,) if number}
    stem = name
    for number in sorted(gone, key=lambda number: number.start, reverse=True):
        stem = f"{stem[: gone[number]].rstrip(_SEPARATORS)}-{stem[number.end :].lstrip(_SEPARATORS)}"
    unit: Unit = (
        "epoch" if step and step.meaning == "epoch" else "step" if step and step.meaning == "step" else "number"
    )
    return Label(
        stem=(_NAMED_STAGE.sub("", stem, count=1) if named else stem).strip(_SEPARATORS),
        step=step.value if step else None,
        unit=unit,
        tokens=tokens.value if tokens else None,
        rounding=tokens.rounding if tokens else 0,
        stage=stage,
    )
