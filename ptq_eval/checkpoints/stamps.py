"""What is in a checkpoint's name and counts nothing: dates, times, hashes, losses, and words such as `hf`.

A *stamp* (a date, a time or a hash) says when or from which code a checkpoint was saved, a *score* how good it is.  A
word right beside digits decides: `step20240105` is a step, `tokens1500000000` are tokens.
"""

from __future__ import annotations

import re

_CLOCK = r"(?:[01][0-9]|2[0-3])(?P<{0}>[-_:.h]?)[0-5][0-9](?:(?P={0})[0-5][0-9])?[sz]?"
_DATE = re.compile(
    r"(?<![0-9])(?:(?:19|20)[0-9]{2}(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?P<gap>[-_.])(?:0?[1-9]|1[0-2])(?P=gap)(?:0[1-9]|[12][0-9]|3[01]|[1-9]))"
    rf"|[0-3]?[0-9]-[0-3]?[0-9]-20[0-9]{{2}})(?:[-_t ]*{_CLOCK.format('colon')})?(?![0-9]|[kmbt](?![a-z]))",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?<![0-9])(?:(?:[01][0-9]|2[0-3])(?P<colon>[-:_])[0-5][0-9](?P=colon)[0-5][0-9]|1[4-9][0-9]{8}(?:[0-9]{3})?)(?![0-9])"
)
"""A time of day, or the seconds or milliseconds since 1970."""
_HASH = re.compile(r"(?<![0-9a-z])(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,64}(?![0-9a-z])", re.IGNORECASE)
_NO_HASH = re.compile(r"(?:ba|[a-f])[0-9]+|[0-9]+[a-f]|[0-9]+e[0-9]+", re.IGNORECASE)
_COUNTED = re.compile(r"(?:step|iter|iteration|update|epoch|tok|token|ba)s?[-_=: ]?\Z", re.IGNORECASE)
"""Before digits: they are what the word says, whatever else they look like."""
_COUNTS = re.compile(r"[-_ ]?(?:step|iter|update|tok|epoch)", re.IGNORECASE)
"""The same, behind digits."""
_SCORE = re.compile(
    r"[-_]*(?:(?:val|valid|validation|eval|dev|test|train)[-_/]?)?"
    r"(?:loss|acc|accuracy|ppl|perplexity|bpb|bpc|nll|ce|f1|score|metric|reward|kl)[-_=:]?[0-9]+\.[0-9]+(?![0-9])"
    r"|(?<=[0-9])[-_=]+[0-9]+\.[0-9]{2,}(?![0-9a-z.])",
    re.IGNORECASE,
)
"""A loss, or a number with decimals behind the step."""
_SAMPLES = re.compile(r"[-_]*consumed_(?:train_)?samples[-_=][0-9]+(?:\.[0-9]+)?(?![0-9])", re.IGNORECASE)
"""A count of samples, which matters only where there is no other number."""
_NEUTRAL = frozenset(
    ("main", "hf", "final", "last", "latest", "best", "end", "unsharded", "converted", "merged", "export", "exported",
     "release", "safetensors", "bf16", "fp16", "fp32")
)  # fmt: skip
"""Words that say how or why a checkpoint was saved, not which run it is of."""


def find(name: str) -> list[tuple[int, int]]:
    """Where the dates, times and hashes in a name are, in order."""
    found: list[tuple[int, int]] = []
    for pattern in (_DATE, _TIME, _HASH):
        for match in pattern.finditer(name):
            start, end = match.span()
            said = _COUNTED.search(name[:start]) or _COUNTS.match(name[end:])
            known = _NO_HASH.fullmatch(match[0]) if pattern is _HASH else said and match[0].isdecimal()
            if not known and all(end <= other[0] or other[1] <= start for other in found):
                found.append((start, end))
    return sorted(found)


def is_date(digits: str) -> bool:
    """Whether digits alone are a date, such as 20240105, or a time in seconds."""
    return any(pattern.fullmatch(digits) for pattern in (_DATE, _TIME))


def digits(stamp: str) -> str:
    """A stamp without what is between its parts, so that dates sort."""
    return re.sub(r"[-_.:t ]", "", stamp.lower())


def without_scores(name: str) -> str:
    """The name without losses and the like."""
    name = _SCORE.sub("", name)
    rest = _SAMPLES.sub("", name)
    return rest if re.search("[0-9]", rest) else name


def fields(name: str) -> list[str]:
    """The fields of a name, which has no stamps, that say which run it is of."""
    return [part for part in re.split(r"[-_.=: ]+", name.lower()) if part and part not in _NEUTRAL]


def is_neutral(word: str) -> bool:
    """Whether a word says nothing about the run."""
    return word in _NEUTRAL
