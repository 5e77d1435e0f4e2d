"""The numbers in the name of a checkpoint, and what each of them counts, where that is certain.

A number counts optimizer steps, checkpoints (`number`), epochs, tokens or stages only beside a word listed for it.
Beside the `other` words it counts something else along the training, and beside the `fixed` ones it says which run it
is.  These two lists cannot be complete and need not be: a number beside a word that is nowhere here is no step either.

Numbers are read as English writes them: 1,500 and 1_500 tokens are fifteen hundred, 1.5k too; 4_2B_tokens are 4.2
billion.  One that may be read in
two ways (1.500 tokens, `tokens_1_2`, `step_-1`, `2,5B`), or has words for two different counts (`step-500-tokens`), is
`other`: `_in_doubt` has what makes it so.  A wrong D cannot be seen in a result, a question for D can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from ptq_eval.checkpoints import stamps

_WORDS = {
    "step": "step steps st globalstep globalsteps gstep iter iters itr itrs iteration iterations it update updates ba "
    "checkpoint",
    "number": "ckpt ckpts ckp chkpt chk checkpoints snapshot",
    "epoch": "epoch epochs ep",
    "tokens": "token tokens tok toks ntok ntoks ntoken ntokens numtokens",
    "stage": "stage phase ingredient",
    "other": "sample samples example examples sequence sequences instance instances doc docs document documents row "
    "rows pct percent percentage hour hours hr hrs minute minutes min mins second seconds sec secs day days week weeks "
    "flop flops tflop tflops word words char chars byte bytes kb mb gb tb",
    "fixed": "seed seeds run exp experiment trial version v rank ranks r fold folds lr bs wd ctx seq len layer layers "
    "head heads dim dims d n h l width depth size context window vocab hidden expert experts lora alpha bit bits "
    "w a q fp bf nf int float gpu gpus node nodes replica try attempt of jan feb mar apr may jun jul aug sep oct nov "
    "dec",
}
MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
"""What a number behind a word counts."""

AFTER = {
    **{word: meaning for word, meaning in MEANINGS.items() if meaning in ("step", "epoch", "tokens", "other")},
    "st": "",
    **dict.fromkeys(("h", "s", "d"), "other"),
    **dict.fromkeys(("bit", "bits", "layer", "layers", "head", "heads", "expert", "experts", "dim", "dims"), "fixed"),
    **dict.fromkeys(("gpu", "gpus", "node", "nodes", "seed", "seeds", "lr", "bs", "wd"), "fixed"),
}
"""What a number before a word counts: 10h are hours, but h10 are heads; st1 is a step, 1st is none."""

SAVED = frozenset(
    ("model", "models", "save", "saves", "saved", "weight", "weights", "state", "states", "params", "net", "network",
     "pt", "pth", "dump", "train", "trained", "training", "pretrain", "pretrained", "intermediate", "mid")
)  # fmt: skip
"""Words for a checkpoint, beside which a number is the checkpoint's own if siblings differ in it."""

_SETTINGS = (
    r"(?<![a-z])(?:(?:(?:[a-z]+[-_ ])?per|of|from)[-_ ](?=[a-z])|(?:warm_?up|max|every)[-_ ](?=[a-z]+s(?![a-z]))"
    r"|(?:batch|context|ctx|seq|vocab)[-_ ](?=n?tok))"
)
"""Words that make a setting of the training of the one behind them: `warmup_steps_2000`, `tokens_per_step_4M`; or the
point that it went on from: `from_step_100`."""

FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_SPELLED = {"thousand": "k", "million": "m", "mn": "m", "billion": "b", "bn": "b", "trillion": "t"}
SEPARATORS = "-_.=: "
MAYBE = "\x01"
"""In place of an underscore that may be a decimal point."""
_NUMBER = re.compile(
    rf"(?P<setting>{_SETTINGS})?(?P<word>[a-z]*)[-_.=: ]*(?<![0-9])"
    rf"(?P<digits>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+(?:[.{MAYBE}][0-9]+)?(?:e[-+]?[0-9]{{1,2}}(?![0-9]))?)"
    rf"(?:(?P<suffix>[kmbgt]|[-_ ]?(?:{'|'.join(_SPELLED)}))(?P<unit>t|tok|tokens?)?(?![a-z]))?"
    r"(?P<rate>(?=(?:[-_ ]?[a-z]+)?[-_ ]per[-_ ]))?"
    r"(?=(?:(?P<gap>[-_ ]?)(?P<after>[a-z]+)(?![a-z])(?![^a-z]*[0-9]))?)",
    re.IGNORECASE,
)
_FEWEST_TOKENS = 1000
"""Fewer tokens than this, without a factor, are no D: `tokens-100` may be millions or billions."""
_LARGEST_BATCH = 2 * 10**8
"""More tokens than any training has in a step: the 4 in step_4_2B is no step."""
_PADDED = 4
"""Digits, with leading zeros, of a counter of saved states; settings such as `v01` have fewer."""
_GROUPS = (
    r"[0-9]{1,3}(?:(?P<between>[_ ])[0-9]{3}(?:(?P=between)[0-9]{3})*|(?P<mark>[.'’])[0-9]{3}(?:(?P=mark)[0-9]{3})+)"
)
_GROUPED_TOKENS = (
    re.compile(
        rf"(?<![0-9a-z])(?<![0-9][.,])(?<!step[-_ ])(?<!iter[-_ ]){_GROUPS}(?=[-_ .]?tok(?:en)?s?(?![a-z]))",
        re.IGNORECASE,
    ),
    re.compile(rf"(?<=tok|ens|ken|oks)[-_=:. ]*{_GROUPS}(?![-_ .,]?[0-9]|[-_ ]?[kmbgt](?![a-z]))", re.IGNORECASE),
)
"""Thousands of a count of tokens, 98_000_000 or 98.000.000, behind which or before which `tokens` is written."""
_TENTHS = re.compile(
    r"(?<![0-9.,])(?P<whole>[0-9]{1,4})_(?P<tenths>[0-9]{1,2})(?=[bt](?:t|tok(?:en)?s?)?(?![a-z]))", re.IGNORECASE
)
"""Billions with an underscore in place of the decimal point, as in 4_2B, if this is what it is."""


@dataclass(frozen=True)
class Number:
    """A number in a name: its value (None for a fraction), what it counts ("" where nothing says so), and where it and
    its word are.

    `alone` is whether no other bare number follows, `clear` whether it can be read in one way only.
    """

    value: int | None
    rounding: int
    suffix: str
    meaning: str
    word: str
    start: int
    end: int
    word_start: int
    padded: bool = False
    alone: bool = True
    clear: bool = True


def joined_thousands(name: str) -> str:
    """The name with counts of tokens that are written in groups of three digits as plain digits."""
    for grouped in _GROUPED_TOKENS:
        name = grouped.sub(lambda found: re.sub(r"(?<=[0-9])[_ .'’]", "", found[0]), name)
    return name


def with_decimals(name: str) -> str:
    """The name with the decimal point in 4_2B, or with `MAYBE` where 4 may be a number of its own (`ckpt_4_2B`)."""
    dates = stamps.find(name)

    def pointed(found: re.Match[str]) -> str:
        if any(start <= found.start() < end for start, end in dates):
            return found[0]
        behind = name[found.end() :]
        tokens = int(found["tenths"]) * FACTORS[behind[0].lower()]
        mark = _mark(name[: found.start()], behind, possible=may_be_seen(tokens, int(found["whole"])))
        return f"{found['whole']}{mark}{found['tenths']}"

    return _TENTHS.sub(pointed, name)


def may_be_seen(tokens: int, step: int) -> bool:
    """Whether a training may have seen so many tokens at a step."""
    return bool(tokens) == bool(step) and tokens <= _LARGEST_BATCH * step


def _mark(before: str, behind: str, possible: bool) -> str:
    """What the underscore in 4_2B is, by the parts of the name before and behind it.

    `possible`: whether 2B may be the tokens at step 4.
    """
    word = re.sub(r".*?([a-z]*)[-_=:. ]*$", r"\1", before.lower(), flags=re.DOTALL)
    meaning = MEANINGS.get(word, "")
    if meaning in ("step", "epoch", "stage", "fixed", "other") and word != "checkpoint":
        return "_" if possible or meaning != "step" else "."  # step_400_2B: step 400, but step_1_5T: 1.5T
    counted = re.search("[0-9][-_ ]$", before)  # step_98_4_2B
    return "." if meaning == "tokens" or counted or re.match(".(?:t|[-_ ]?tok)", behind.lower()) else MAYBE


def numbers_in(name: str) -> list[Number]:
    """The numbers in a name, except in stamps; numbers that may be read in two ways are "other"."""
    masked = cut(name, stamps.find(name), "\0")
    bare = "".join(stamps.fields(masked.replace("\0", "")))
    found = [_number(match, bare) for match in _NUMBER.finditer(masked)]
    numbers = []
    for before, number, after in zip([None, *found], found, [*found[1:], None]):
        doubt = _in_doubt(masked, before, number, after) or (number.meaning == "tokens" and not _is_d(number))
        doubt = doubt or MAYBE in masked[number.start : number.end]
        alone = not (after and not after.meaning and _side_by_side(masked[number.end : after.start], number, after))
        meaning = "other" if doubt and number.meaning in _COUNTED else number.meaning
        numbers.append(replace(number, alone=alone, clear=not doubt, meaning=meaning))
    return numbers


def _is_d(number: Number) -> bool:
    """Whether a count of tokens may be a checkpoint's."""
    return number.value is not None and (number.value == 0 or number.value >= _FEWEST_TOKENS)


def cut(name: str, spans: Iterable[tuple[int, int]], filler: str = "") -> str:
    """The name without some parts, or with `filler` in place of each of their characters."""
    for start, end in sorted(spans, reverse=True):
        name = f"{name[:start]}{filler * (end - start)}{name[end:]}"
    return name


_COUNTED = ("step", "epoch", "number", "tokens")
_SIGN = re.compile(r"(?:^|[-_.=: ])-$")
_BESIDE = re.compile(r"(?:^|[-_.=: a-z()\[\]@#\0])$", re.IGNORECASE)
_BEHIND = re.compile(r"(?:$|[-_.=: ()\[\]@#,\0](?!(?<=,)[0-9])(?![kmbgt](?![a-z0-9])))", re.IGNORECASE)
_GLUED = re.compile(r"[a-z]+", re.IGNORECASE)


def _in_doubt(name: str, before: Number | None, number: Number, after: Number | None) -> bool:
    """Whether what touches a number that counts something makes another number of it, or may.

    That is a sign, a mark that is no separator (2,5), letters that mean nothing here (4Gi, 0x10), a factor apart from
    it (`4 B`), or a bare number before or behind it.
    """
    glued = _GLUED.match(name, number.end)
    word = glued[0].lower() if glued else ""
    if word and word not in AFTER and word not in MEANINGS and not stamps.is_neutral(word):
        return True
    if _SIGN.search(name[: number.start]) or not _BESIDE.search(name[: number.start]):
        return True
    if not glued and not _BEHIND.match(name, number.end):
        return True
    tokens = number.meaning == "tokens"
    if after and not after.meaning and _side_by_side(name[number.end : after.start], number, after, tokens):
        return True
    if before is None or before.meaning or (number.word and (before.word or name[number.start - 1].isalpha())):
        return False
    return _side_by_side(name[before.end : number.word_start], before, number, tokens)


def _side_by_side(between: str, one: Number, other: Number, tokens: bool = False) -> bool:
    """Whether nothing is between two numbers, or "to".

    One with a factor is a number of its own beside a step (`step-50K-105b`), but not beside `tokens`.
    """
    return (tokens or not (one.suffix or other.suffix)) and between.strip(SEPARATORS).lower() in ("", "to")


def _number(match: re.Match[str], bare: str) -> Number:
    """`bare` is the name without stamps and words that do not matter."""
    suffix = (match["suffix"] or "").strip(SEPARATORS).lower()
    suffix = _SPELLED.get(suffix, suffix)
    digits = Decimal(match["digits"].replace(",", "").replace(MAYBE, "."))
    unit = Decimal(1).scaleb(int(digits.as_tuple().exponent)) * FACTORS[suffix]
    exact = digits * FACTORS[suffix]
    # 1.000 may be a thousand, but 1.0 is 1.
    whole = exact == exact.to_integral_value() and (suffix or int(digits.as_tuple().exponent) >= -1)
    return Number(
        value=int(exact) if whole else None,
        rounding=int(unit) if whole else 0,
        suffix=suffix,
        meaning=_meaning(match, suffix, bare),
        word=match["word"].lower(),
        start=match.start("digits"),
        end=max(match.end(group) for group in ("digits", "suffix", "unit")),
        word_start=match.start("word"),
        padded=len(match["digits"]) >= _PADDED and match["digits"].startswith("0"),
    )


def _meaning(match: re.Match[str], suffix: str, bare: str) -> str:
    """What a number counts, by its unit, the word before it, the word after it, or its being the whole name."""
    before, after = MEANINGS.get(match["word"].lower(), ""), AFTER.get((match["after"] or "").lower(), "")
    if match["setting"] or match["rate"] is not None or match["word"].lower() == "of":
        return "fixed"
    if match["unit"]:
        return "tokens"
    if before in _COUNTED and after not in ("", before, "fixed") and (before, after) != ("number", "step"):
        # Of two words for different counts, one that touches the number alone has it.
        return after if not match["gap"] and match.end("word") < match.start("digits") else "other"
    if (before or after) in ("step", "number") and suffix in ("b", "t"):
        # No training has a billion steps; step100b may be a variant of step100.
        return "" if not before else "other" if match["suffix"] == "b" and before == "step" else "tokens"
    if before or after:
        return before or after
    if match["digits"] == bare:
        return "step" if Decimal(bare.replace(",", "")) < FACTORS["b"] else "other"
    return "other" if bare.isdecimal() else ""  # numbers alone: which of them is the step?
