"""Property: a number in a name is read as what was written, or not at all."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints.labels import read, read_siblings

WORDS = {
    "step": ["step", "steps", "iter", "global_step", "update", "checkpoint"],
    "tokens": ["tokens", "tok", "toks", "ntokens"],
}
FACTORS = {
    "K": 10**3,
    "M": 10**6,
    "B": 10**9,
    "G": 10**9,
    "T": 10**12,
    "million": 10**6,
    "_billion": 10**9,
    "bn": 10**9,
}


def grouped(value, mark):
    return f"{value:,}".replace(",", mark)


@st.composite
def spelled(draw, marks=",_"):
    """(text, value): a number as somebody may write it; those of the Continent too, whose marks mean the reverse.

    `marks` may be in place of a decimal point.
    """
    value = draw(st.integers(0, 10**10))
    kind = draw(st.sampled_from(["plain", "padded", "grouped", "factor", "comma", "power", "fraction"]))
    digits, decimals = draw(st.integers(1, 999)), draw(st.integers(1, 99))
    suffix = draw(st.sampled_from(sorted(FACTORS)))
    whole = Decimal(f"{digits}.{decimals}")
    return {
        "plain": (str(value), value),
        "padded": (f"{value:012d}", value),
        "grouped": (grouped(value, draw(st.sampled_from(list(",._' ")))), value),
        "factor": (f"{whole}{suffix}", int(whole * FACTORS[suffix])),
        "comma": (f"{digits}{draw(st.sampled_from(marks))}{decimals}{suffix}", int(whole * FACTORS[suffix])),
        "power": (f"{digits}e{6}", digits * 10**6),
        "fraction": (f"{digits}.{decimals}", None),
    }[kind]


@st.composite
def named(draw):
    """(name, what it counts, value, None where the number is negative): a word before or behind the number."""
    what = draw(st.sampled_from(sorted(WORDS)))
    text, value = draw(spelled("," if what == "step" else ",_"))  # step_98_4B is step 98, as in public suites
    word, gap = draw(st.sampled_from(WORDS[what])), draw(st.sampled_from(["", "_", "-", ".", "=", " "]))
    sign = draw(st.sampled_from(["", "", "", "-", "+", "−"])) if gap else ""
    name = f"{word}{gap}{sign}{text}" if sign or draw(st.booleans()) else f"{text}{gap}{word}"
    name = draw(st.sampled_from(["", "", "big-", "llama_7b-", "v2-", "x "])) + name
    name += draw(st.sampled_from(["", "", "-hf", "_final", ".ckpt", "-seed3"]))
    return name, what, None if sign in ("-", "−") else value


def agrees(found, value, rounding=0):
    return found is None or (value is not None and abs(found - value) <= rounding)


@given(named())
def test_the_number_that_was_written_or_none(case):
    name, what, value = case
    for label in (read(name), *read_siblings([name, "run-x", "7"]).values()):
        if label is None or label.step == 7:
            continue
        assert agrees(label.tokens, value, label.rounding)
        assert label.step is None or (what == "step" and agrees(label.step, value))


@given(st.integers(1, 999), st.integers(1, 999), st.sampled_from("._, -"), st.sampled_from(["tokens", "step"]))
def test_two_numbers_side_by_side_are_not_one_of_them(one, other, mark, word):
    for name in (f"{word}_{one}{mark}{other}", f"{one}{mark}{other}_{word}", f"{word}{one}{mark}{other}"):
        label = read(name)
        joined = int(f"{one}{other:03d}")
        for found in (label and label.step, label and label.tokens):
            assert found in (None, joined), name


@pytest.mark.parametrize(
    "name",
    ["98.000-tokens", "tokens_1_2", "2,5B-tokens", "tokens_4_B", "4Gi-tokens", "step_-1", "step--1",
     "-1", "tokens=-5B", "step100b", "step_0x10", "step98e", "step500_tokens", "step-500-tokens", "tokens-500-steps",
     "step-100-to-200", "step_98_iter_500", "tokens1B-tokens2B", "tokens_1M_2M", "10B-tokens-7B", "98-step-500",
     "step5k5", "step1,000,00", "soup-step100+step200", "tokens-100", "tok_4", "annealed-from-step100",
     "2000-steps-step_-1", "tokens 1,000,000.5", "step+5k-2"],
)  # fmt: skip
def test_what_may_be_read_in_two_ways_counts_nothing(name):
    label = read(name)
    assert label is None or (label.step, label.tokens) == (None, None)


@pytest.mark.parametrize(
    "names", [["model_-1", "model_98"], ["model_1,5", "model_98"], ["w0x10", "w0x20"], ["foo-001,5B", "foo-002T"]]
)
def test_siblings_do_not_settle_what_may_be_read_in_two_ways(names):
    label = read_siblings(names).get(names[0])
    assert label is None or (label.step, label.tokens) == (None, None)


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("98.000.000-tokens", None, 98_000_000),
        ("ckpt-98_000_000tok", None, 98_000_000),
        ("tokens_4_billion", None, 4 * 10**9),
        ("4bn_tokens", None, 4 * 10**9),
        ("step_5_of_100", 5, None),
        ("warmup_steps_2000_step_98", 98, None),
        ("step1000-2Mtokens-per-step", 1000, None),
        ("batch_tokens_4M-step7", 7, None),
        ("1000-tokens4B", None, 4 * 10**9),
        ("ckpt-98-steps", 98, None),
        ("long-context-step100", 100, None),
        ("warmup-step100", 100, None),
        ("4M-tokens-per-batch-step100", 100, None),
        ("from_step_100-step_200", 200, None),
        ("tokens0", None, 0),
    ],
)
def test_what_has_one_meaning_is_read(name, step, tokens):
    label = read(name)
    assert label is not None
    assert (label.step, label.tokens) == (step, tokens)


@pytest.mark.parametrize("name", ["warmup_steps_2000", "tokens-per-step-4M", "batch_tokens_4M", "max-steps-100"])
def test_a_setting_in_the_words_of_a_count_is_no_label(name):
    assert read(name) is None
