"""Contract: the grammar of branches, and one line for everything that is none."""

import re

import pytest

from ptq_eval.config.endings import KINDS, AverageConfig, Branch, ProbeConfig
from ptq_eval.errors import OptionError


@pytest.mark.parametrize(
    ("spec", "branch"),
    [
        ("decay:10%", Branch("decay", 0.1)),
        ("decay:0.25", Branch("decay", 0.25)),
        ("DECAY:12.5 %", Branch("decay", 0.125)),
        ("qat:5%", Branch("qat", 0.05, "4")),
        ("qat:5%@3", Branch("qat", 0.05, "3")),
        ("decay+qat:10%@fp8_e4m3", Branch("decay+qat", 0.1, "fp8_e4m3")),
        ("average:8", Branch("average", 8)),
        ("ema:0.999", Branch("ema", 0.999)),
        ("lawa:4", Branch("lawa", 4)),
    ],
)
def test_a_branch_is_read_and_written(spec, branch):
    (found,) = ProbeConfig(branch=spec).branch
    assert found == branch
    assert ProbeConfig(branch=found.name).branch == (found,)


def test_several_branches_are_separated_by_commas_or_listed():
    assert ProbeConfig(branch="decay:10%,average:4").branch == ProbeConfig(branch=["decay:10%", "average:4"]).branch
    assert len(ProbeConfig(branch="decay:10%,decay:0.1").branch) == 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("decai:10%", "did you mean 'decay'?"),
        ("decay", "needs its amount | got 'decay' | allowed: decay:SHARE | remedy: for example decay:10%"),
        ("decay+qat", "remedy: for example decay+qat:10%@4"),
        ("qat@3", "remedy: for example qat:10%@3"),
        ("qat:@3", "remedy: for example qat:10%@3"),
        ("average:", "remedy: for example average:4"),
        ("lawa", "remedy: for example lawa:8"),
        ("decai", "did you mean 'decay'?"),
        ("", "names no way to end the run"),
        ("10%", "KIND:AMOUNT"),
        ("decay:0%", "out of range"),
        ("decay:100%", "at most 90%"),
        ("decay:-5%", "out of range"),
        ("decay:ten%", "not a number"),
        ("decay:10", "out of range"),
        ("decay:10%@4", "decay has no precision"),
        ("qat:5%@", "precision of a branch is empty"),
        ("average:1", "at least 2"),
        ("average:2.5", "number of average"),
        ("average:8@4", "average has no precision"),
        ("ema:1.5", "above 0, below 1"),
        ("lawa:0", "at least 2"),
        ("decay:10%,,average:4", "empty"),
    ],
)
def test_what_is_no_branch_is_refused_in_one_line(spec, said):
    with pytest.raises(OptionError, match=re.escape(said)) as refused:
        ProbeConfig(branch=spec)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_an_example_of_a_kind_is_a_branch():
    for kind in KINDS:
        with pytest.raises(OptionError) as refused:
            ProbeConfig(branch=kind)
        [example] = ProbeConfig(branch=refused.value.remedy.split()[-1]).branch
        assert example.kind == kind


@pytest.mark.parametrize(("amount", "start", "end"), [(0.1, 800, 889), (0.5, 1, 2), (1 / 801, 800, 801)])
def test_a_branch_is_its_share_of_where_it_ends(amount, start, end):
    assert Branch("decay", amount).end(start) == end


@pytest.mark.parametrize(("amount", "start"), [(1e-11, 800), (0.01, 20), (5e-4, 800)])
def test_a_branch_of_no_step_is_refused(amount, start):
    with pytest.raises(OptionError, match="less than half a step") as refused:
        Branch("decay", amount).end(start)
    assert "\n" not in str(refused.value)


def test_windows_are_sorted_and_have_two_members():
    assert AverageConfig(windows="8,2,2").windows == (2, 8)
    with pytest.raises(OptionError, match="too small"):
        AverageConfig(windows="1,2")
    with pytest.raises(OptionError, match="need a value"):
        AverageConfig(windows="")
