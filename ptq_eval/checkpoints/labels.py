"""Read the name of a checkpoint's folder or revision: its step, epoch, tokens and stage, and the run it belongs to.

A name is made of words and numbers with `-_.=: ` or nothing between them.

* A *number* is 98, 0000098, 1,000 or 1e3, or with k, M, B or T 1.5k and 4B.  It counts what the word before it says
  (`step_98`, `tokens4B`), or the one after it (`1000step`, `240b_tokens`); see `numerals`.  One that is the whole
  name is a step; one beside a word for a checkpoint (`model_100`), or with leading zeros (`foo-00100`), is the
  checkpoint's number where siblings differ in it, see `read_siblings`.  Beside any other word it may be a setting of
  the training (`dropout1`), so that the step is asked for.  Words for such settings (`seed1`, `v2`, `4bit`) and sizes
  (`llama-7B`) say which run it is.
* Stamps (dates, times, hashes), scores (losses) and words such as `hf` and `main` count nothing, see `stamps`, and make
  no other run of a checkpoint, see `_joined`.
* The *stem* is what is left without step, tokens and stage; folders of the same stem belong to one run.

A step or D is read only where it is certain.  It is not in two numbers side by side (`step_1_000`, `tokens_1_2`;
fairseq's `checkpoint_1_1000` excepted), with decimals (`epoch-0.5`), a sign (`step_-1`) or in a count of something else
(`samples-1000`, `10pct`): such names make a run, ordered by the number, whose steps are asked for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from ptq_eval.checkpoints import stamps
from ptq_eval.checkpoints.numerals import (
    FACTORS,
    MAYBE,
    MEANINGS,
    SAVED,
    SEPARATORS,
    Number,
    cut,
    joined_thousands,
    numbers_in,
    with_decimals,
)

Unit = Literal["step", "epoch", "number", "other"]
"""What a checkpoint is numbered by: optimizer steps, epochs, a number of unknown meaning, or what is no step."""

_NAMED_STAGES = ("pretrain", "midtrain", "anneal", "decay", "cooldown")
"""Words at the start of a name that say a stage of training, in order of training."""
_NAMED_STAGE = re.compile(rf"({'|'.join(_NAMED_STAGES)})[-_]", re.IGNORECASE)
_ALONE = "/"
"""A number in what is left of a name: the whole of it where no word is beside it."""
_MOST_SIZES = 6
"""How many sizes of a batch are compared at the most."""
_FAIRSEQ = re.compile(r"checkpoint_([0-9]+)_([0-9]+)")
_GLUED_FACTOR = re.compile(r"(?<=[0-9][km])(?=(?:step|iter|iteration|update|sample)s?(?![a-z]))", re.IGNORECASE)
"""Between a number's factor and the word right behind it: 100Ksteps."""
_TOKENS_SEEN = re.compile(r"(tokens?)[-_]?seen", re.IGNORECASE)


@dataclass(frozen=True)
class Label:
    """What a name says.  `rounding` is one unit of the last digit of `tokens`; `stem` is what a run shares.

    Half a unit would hold if all labels were rounded to the nearest.  OLMo 2's are rounded up (step 596,057 is at
    5,000.1B and called 5001B, 0.9 units off), others down, and no name says which.

    A `step` that is None is not known for certain; `number` is then what it would be if the number in the name counts
    steps, None where it cannot.  `core` is the stem without `stamps` and words that do not matter;
    `said` is whether `tokens` are called tokens, so that they are no size of a model; `epoch` is one beside a step.
    """

    stem: str
    step: int | None = None
    unit: Unit = "step"
    tokens: int | None = None
    rounding: int = 0
    stage: str = ""
    number: int | None = field(default=None, compare=False)
    epoch: int | None = field(default=None, compare=False)
    core: str = field(default="", compare=False)
    stamps: tuple[str, ...] = field(default=(), compare=False)
    said: bool = field(default=True, compare=False)


def read(name: str) -> Label | None:
    """The label in `name`, or None where no word of it says what a number counts."""
    name = _plain(name)
    numbers = _without_contradictions(numbers_in(name))
    steps = sorted((n for n in numbers if n.meaning == "step"), key=lambda n: n.word == "checkpoint")
    others = [n for meaning in ("number", "epoch", "other") for n in numbers if n.meaning == meaning]
    step = next(iter([*steps, *others]), None)
    tokens = next((n for n in numbers if n.meaning == "tokens"), None)
    if tokens is not None and step is not None and step.meaning == "other":
        step = None
    if tokens is None and step is not None and step.meaning != "other":
        tokens = next((n for n in numbers if n.start > step.start and not n.word and n.suffix in ("b", "t")), None)
    if step is None and tokens is None:
        return None
    return _label(name, numbers, step, tokens)


def _without_contradictions(numbers: Sequence[Number]) -> list[Number]:
    """With several numbers beside words for steps (or tokens) that differ as "other", unless one is `checkpoint-3`."""
    for meaning in ("step", "tokens"):
        said = [n for n in numbers if n.meaning == meaning or (not n.clear and MEANINGS.get(n.word) == meaning)]
        found = {n.value for n in said if n.word != "checkpoint"}
        if len(found) > 1:
            numbers = [replace(n, meaning="other") if n.meaning == meaning else n for n in numbers]
    return list(numbers)


def read_siblings(names: Iterable[str]) -> dict[str, Label]:
    """The labels of sibling names; a number beside an unknown word counts where names differ in it."""
    names = list(names)
    labels: dict[str, Label] = {}
    groups: dict[str, dict[str, Number]] = defaultdict(dict)
    for name in names:
        if label := read(name):
            labels[name] = label
            continue
        plain = _plain(name)
        for number in numbers_in(plain):
            if not number.meaning:
                rest = cut(plain, [*stamps.find(plain), (number.start, number.end)], "\0")
                groups["-".join(stamps.fields(re.sub("\0+", _ALONE, rest)))][name] = number
    labels |= _nested(set(names), labels)
    for rest, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        unread = {name: number for name, number in group.items() if name not in labels}
        counted = _counted(list(unread.values()), rest == _ALONE) if len(unread) > 1 else "fixed"
        for name, number in unread.items() if counted != "fixed" else ():
            labels[name] = _by_siblings(_plain(name), number, counted)
    return _with_certain_steps(_without_shared_totals(_joined(labels)))


def _nested(names: Iterable[str], labels: Mapping[str, Label]) -> dict[str, Label]:
    """Labels of names that differ in several numbers which grow together (`e1_s98`, `e1_s196`, `e2_s294`).

    One of the numbers grows from each name to the next, and none falls: an epoch and a step in it, say.  Names in which
    both are settings (`a1_b1`, `a1_b2`, `a2_b1`) do not.
    """
    groups: dict[str, dict[str, list[Number]]] = defaultdict(dict)
    for name in names:
        label = labels.get(name)
        if label is not None and (label.unit not in ("epoch", "other") or label.tokens is not None):
            continue
        plain = _plain(name)
        numbers = [n for n in numbers_in(plain) if n.meaning in ("", "epoch", "other") and n.value is not None]
        if len(numbers) > 1 and any(n.meaning != "epoch" for n in numbers):
            spans = [*stamps.find(plain), *((n.start, n.end) for n in numbers)]
            groups["-".join(stamps.fields(re.sub("\0+", _ALONE, cut(plain, spans, "\0"))))][name] = numbers
    found = {}
    for group in groups.values():
        columns = list(zip(*sorted([n.value or 0 for n in numbers] for numbers in group.values())))
        growing = [column for column in columns if column[0] != column[-1]]
        steady = [place for place, column in enumerate(columns) if len({*column}) == len(column)]
        if len(growing) > 1 and all(list(column) == sorted(column) for column in growing) and steady:
            for name, numbers in group.items():
                counts = [replace(number, meaning="other") for number in numbers]
                label = _label(_plain(name), counts, counts[-1], None)
                found[name] = replace(label, number=numbers[steady[0]].value if len(steady) == 1 else None)
    return found


def _counted(numbers: Sequence[Number], alone: bool) -> str:
    """What the numbers that no word explains and siblings differ in count: "tokens", "number", "other" or "fixed".

    Billions beside a name are the sizes of models (llama-7B), and tokens beside a word for a checkpoint, alone
    (500B, 1.5T), or where they reach a trillion; if they may be sizes too (1B, 7B), "other".  Other numbers are the
    checkpoint's own beside such a word or with leading zeros, which settings of a training do not have.
    `alone`: no word that matters is beside them.
    """
    word = numbers[0].word
    if word == "batch" and _are_batch_sizes([number.value or 0 for number in numbers]):
        return "fixed"
    named = alone or word in SAVED or MEANINGS.get(word) in ("step", "number")
    if all(number.suffix in ("b", "t") for number in numbers):
        if named and _may_be_sizes(sorted(number.value or 0 for number in numbers)):
            return "other"
        large = any((number.value or 0) >= FACTORS["t"] for number in numbers)
        return "tokens" if named or large else "fixed"
    if any(number.suffix for number in numbers):
        return "other"
    return "number" if named or any(number.padded for number in numbers) else "other"


def _are_batch_sizes(values: Sequence[int]) -> bool:
    """Whether numbers are 2^k or 3·2^k, as the sequences in a batch mostly are and the number of a batch seldom is.

    Of checkpoints saved at powers of two there are more than of sizes that are compared.
    """
    return len(values) <= _MOST_SIZES and all(value > 0 and value // (value & -value) in (1, 3) for value in values)


def _may_be_sizes(billions: Sequence[int]) -> bool:
    """Whether counts in order may be sizes of models: below 100B, of at most one decimal, and not multiples of one."""
    even = len(billions) > 2 and all(value == place * billions[0] for place, value in enumerate(billions, start=1))
    return not even and all(value < 100 * FACTORS["b"] and value % (FACTORS["b"] // 10) == 0 for value in billions)


def _by_siblings(name: str, number: Number, counted: str) -> Label:
    """The label of a name in which siblings differ by a number that counts what `_counted` says."""
    if counted == "tokens" and number.clear:
        return replace(_label(name, [], None, number), said=True)
    if counted == "number" and number.clear:
        return _label(name, [], number, None)
    may_be_step = number.clear and number.value is not None and number.value < FACTORS["b"]
    label = _label(name, [], replace(number, meaning="other"), None)
    return replace(label, number=number.value if may_be_step else None)


def _groups(labels: Mapping[str, Label], part: str) -> Iterable[list[str]]:
    """The names of labels that share their stem or core."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, label in labels.items():
        groups[getattr(label, part)].append(name)
    return list(groups.values())


def _joined(labels: dict[str, Label]) -> dict[str, Label]:
    """With one stem for names that differ in stamps and words that do not matter, where these make one run.

    They do where no step occurs twice, and each name has a stamp of its own or the dates grow with the step: runs that
    were started one after the other would begin again.
    """
    for names in _groups(labels, "core"):
        places = [(stage_order(labels[n].stage), labels[n].step or 0, labels[n].tokens or 0, n) for n in names]
        distinct = len({place[:3] for place in places}) == len(places)
        saved = [label.stamps for *_, name in sorted(places) if (label := labels[name]).stamps]
        dates = all(stamp.isdecimal() for own in saved for stamp in own)
        if distinct and (len(set(saved)) == len(saved) or (dates and saved == sorted(saved))):
            labels |= {name: replace(labels[name], stem=labels[name].core) for name in names}
    return labels


def _without_shared_totals(labels: dict[str, Label]) -> dict[str, Label]:
    """Without a count that all steps of a run share though it cannot hold for all: the total of the training.

    A count that is not called tokens is one where the steps of a run differ in it.
    """
    for names in _groups(labels, "stem"):
        steps = [step for name in names if (step := labels[name].step)]
        first = labels[names[0]]
        differ = {labels[name].tokens for name in names} != {first.tokens}
        if differ:
            labels |= {name: replace(labels[name], said=True) for name in names}
        if first.tokens is None or len(steps) < 2 or differ:
            continue
        if max(steps) * (first.tokens - first.rounding) > min(steps) * (first.tokens + first.rounding):
            labels |= {name: replace(labels[name], tokens=None, rounding=0) for name in names}
    return labels


def _with_certain_steps(labels: dict[str, Label]) -> dict[str, Label]:
    """Without the steps of a run in which one occurs twice (they may be counted within epochs) or is a fraction."""
    for names in _groups(labels, "stem"):
        numbered = [name for name in names if labels[name].tokens is None and labels[name].unit != "other"]
        places = {(labels[name].stage, labels[name].step) for name in numbered}
        if len(places) < len(numbered) or any(step is None for _, step in places):
            labels |= {name: replace(labels[name], step=None) for name in numbered}
        if _start_anew([labels[name] for name in numbered]):
            labels |= {name: replace(labels[name], step=None, number=None) for name in numbered}
    return labels


def _start_anew(numbered: Sequence[Label]) -> bool:
    """Whether the steps of a run are counted within epochs: those of a later epoch are not above all earlier ones."""
    steps: dict[tuple[str, int], list[int]] = defaultdict(list)
    for label in numbered:
        if label.epoch is not None and label.step is not None:
            steps[label.stage, label.epoch].append(label.step)
    pairs = pairwise(sorted(steps.items()))
    return any(one[0] == other[0] and max(before) >= min(after) for (one, before), (other, after) in pairs)


def stage_order(stage: str) -> tuple[object, ...]:
    """A key by which the stages of a training sort: stage2 before stage10, pretraining before annealing."""
    rank = _NAMED_STAGES.index(stage) if stage in _NAMED_STAGES else -1
    return rank, *(int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", stage))


def name_order(name: str) -> tuple[object, ...]:
    """A key by which names sort by the numbers in them: 50pct before 100pct, epoch-0.25 before epoch-0.5."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:[kmbt](?![a-z]))?)", name, flags=re.IGNORECASE)
    return tuple(_size(part.lower()) if place % 2 else part for place, part in enumerate(parts))


def _size(number: str) -> float:
    digits = number.rstrip("kmbt")
    return float(digits) * FACTORS[number[len(digits) :]]


def counts(word: str) -> bool:
    """Whether a word says nothing but what the number beside it counts."""
    return MEANINGS.get(word, "fixed" if word not in ("", "global") and not stamps.is_neutral(word) else "") != "fixed"


def extra_words(revision: str) -> frozenset[str]:
    """What the name of a checkpoint says about its run besides what its numbers count."""
    label = read(revision.partition("/")[0])
    return frozenset(word for word in (label.core if label else "").lower().split("-") if not counts(word))


def _plain(name: str) -> str:
    """The name without scores, and with words in place of fairseq's order and of signs."""
    name = stamps.without_scores(name.replace("%", "pct"))
    if fairseq := _FAIRSEQ.fullmatch(name):
        name = fairseq.expand(r"checkpoint_epoch\1_update\2")
    return with_decimals(joined_thousands(_GLUED_FACTOR.sub("-", _TOKENS_SEEN.sub(r"\1", name))))


def _label(name: str, numbers: Sequence[Number], step: Number | None, tokens: Number | None) -> Label:
    stages = [number for number in numbers if number.meaning == "stage"]
    named = _NAMED_STAGE.match(name)
    stage = "-".join(f"{number.word}{number.value}" for number in stages) or (named[1].lower() if named else "")
    gone = {number: number.word_start for number in numbers if number.meaning in ("stage", "tokens", "epoch")}
    gone |= {number: number.start for number in numbers if number.meaning in ("step", "number", "other")}
    gone |= {number: number.word_start for number in (tokens,) if number}
    gone |= {number: number.start for number in (step,) if number}
    for one, other in pairwise(numbers):
        if one in gone and not one.alone:
            gone[other] = other.start
    spans = [(start, number.end) for number, start in gone.items()]
    dates = stamps.find(name)
    certain = step is not None and step.alone and step.meaning != "other"
    return Label(
        stem=_stem(name, spans, named is not None),
        step=step.value if step and certain else None,
        unit=_unit(step),
        tokens=tokens.value if tokens else None,
        rounding=tokens.rounding if tokens else 0,
        stage=stage,
        epoch=next((number.value for number in numbers if number.meaning == "epoch" and number != step), None),
        core="-".join(stamps.fields(_stem(name, [*spans, *dates], named is not None))),
        stamps=tuple(stamps.digits(name[start:end]) for start, end in dates),
        said=tokens is None or tokens.meaning == "tokens",
    )


def _stem(name: str, spans: Iterable[tuple[int, int]], staged: bool) -> str:
    for start, end in sorted(spans, reverse=True):
        name = f"{name[:start].rstrip(SEPARATORS)}-{name[end:].lstrip(SEPARATORS)}"
    name = _NAMED_STAGE.sub("", name, count=1) if staged else name
    return name.strip(SEPARATORS).replace(MAYBE, "_")


def _unit(step: Number | None) -> Unit:
    if step is None:
        return "number"
    if step.meaning == "other" or not step.alone:
        return "other"
    return "epoch" if step.meaning == "epoch" else "step" if step.meaning == "step" else "number"
