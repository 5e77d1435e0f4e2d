"""Contract: `ptq-eval plan --endings`: every number with its origin, and one line where there is no record."""

import json

import pytest

from ptq_eval.results.endings import CONFIGURATION


def row(ending, difference=None, *, decision="undecided", bits=4, tokens=2_000_000):
    found = dict.fromkeys(CONFIGURATION) | {"quantizer": "rtn", "format": "int", "bits": bits, "options": "{}"}
    found |= {"ending": ending, "tokens": tokens, "params": 20_000, "group_size": 16, "symmetric": False}
    if difference is not None:
        found |= {"difference": difference, "error": 0.003, "chance": 0.004, "detectable": 0.016, "decision": decision}
    return found


@pytest.fixture
def probed(tmp_path):
    def write(*rows, kind="probe"):
        out = tmp_path / "probed"
        out.mkdir(exist_ok=True)
        text = json.dumps({"format": 1, "kind": kind, "rows": [row("trunk"), *rows]})
        (out / f"{kind}.json").write_text(text, encoding="utf-8")
        return out

    return write


def test_every_number_has_its_origin(ptq_eval, probed, tmp_path):
    out = probed(row("decay:20%", -0.1, decision="better"), row("average:4", -0.01, tokens=1_600_000))
    probed(row("average:8", 0.02, decision="worse"), kind="average")
    answer = ptq_eval("plan", "--endings", out, "-o", tmp_path / "plan")
    assert (answer.code, answer.err) == (0, "")
    said = " ".join(answer.out.split())
    for words in (
        "served at 4 bits, rtn, measured here: decay:20% (-0.1000 ± 0.0050) is better than the trunk at the same D",
        "and than average:4",
        "measured in results/precision at N = ",
        "published law, not checked on this run (arXiv 2509.22935)",
        "not better than the trunk at the same D: average:8",
        "too far to rely on",
        "not over other seeds",
    ):
        assert words in said, words
    content = json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))
    assert (content["question"]["params"], content["question"]["tokens"]) == (20_000, 2_000_000)
    assert content["question"]["serve_bits"] == [4]
    choices = content["endings"]["choices"]
    assert {choice["origin"] for choice in choices} == {"here", "study"}
    assert {share["origin"] for share in content["endings"]["qat_share"]} == {"published"}
    assert [choice["verdict"] for choice in choices if choice["origin"] == "here"] == ["one", "trunk"]


def test_an_effect_within_its_error_is_undecided_with_what_could_have_been_seen(ptq_eval, probed):
    answer = ptq_eval("plan", "--endings", probed(row("decay:20%", -0.008)), "--serve-bits", "4")
    said = " ".join(answer.out.split())
    assert "measured here: undecided, not known to be better than the trunk" in said
    assert "decay:20% would have been decided if it changed the loss by 0.016" in said


def test_each_ending_of_the_study_has_its_own_place(ptq_eval, tmp_path):
    answer = ptq_eval("plan", "--params", "13408", "--tokens", "17.2M", "--serve-bits", "2", "-o", tmp_path / "plan")
    said = " ".join(answer.out.split())
    assert "at N = 13.4k, D/N = 1,280: not better than the trunk at the same D: decay:20% (+" in said
    assert said.index("D/N = 1,280: ") < said.index("D/N = 80: ")
    assert "(D/N 16× from the plan)" in said
    assert "endings that the study has at different N or D/N are not comparable" in said


def test_a_plan_between_two_ratios_is_at_the_nearest(ptq_eval, tmp_path):
    near = ("--params", "13408", "--tokens", "1.1M", "--serve-bits", "2")
    said = " ".join(ptq_eval("plan", *near, "-o", tmp_path / "plan").out.split())
    assert "at N = 13.4k, D/N = 80: " in said
    assert " from the plan)" not in said


def test_options_count_more_than_the_record(ptq_eval, probed, tmp_path):
    out = probed(row("decay:20%", -0.1, decision="better"))
    given = ("--params", "30k", "--tokens", "3M", "--serve-bits", "3,4")
    answer = ptq_eval("plan", "--endings", out, *given, "-o", tmp_path / "plan")
    assert "how to end at 3 bits: not in --endings, which has 4" in " ".join(answer.out.split())
    question = json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))["question"]
    assert (question["params"], question["tokens"]) == (30_000, 3_000_000)


def test_without_a_record_the_plan_says_so(ptq_eval):
    said = " ".join(ptq_eval("plan", "--params", "220M", "--tokens", "26B", "--serve-bits", "4").out.split())
    assert "nothing was measured here" in said
    assert "train with rounded weights for the last 29 % of D at 4 bits" in said


@pytest.mark.parametrize("text", [None, "{", '{"format": 0}'])
def test_no_record_is_one_line(ptq_eval, tmp_path, text):
    if text is not None:
        (tmp_path / "probe.json").write_text(text, encoding="utf-8")
    answer = ptq_eval("plan", "--endings", tmp_path)
    assert answer.code == 40
    assert len(answer.err.splitlines()) == 1
    assert "remedy" in answer.err
