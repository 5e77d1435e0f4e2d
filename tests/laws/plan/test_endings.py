"""Oracle: how a run should end, from records made here, from the table of the study, and from the published share."""

import csv
import gzip
import math
import statistics
from collections import defaultdict
from decimal import Decimal
from itertools import product
from pathlib import Path

import pytest
from scipy import stats

from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.plan.answers import Question, plan
from ptq_eval.laws.plan.endings import A, Origin, Verdict, endings, qat_share, recorded_size, study_rows
from ptq_eval.laws.plan.source import from_preset
from ptq_eval.results.endings import CONFIGURATION, Decision

TABLE = Path(__file__).parents[3] / "results" / "precision" / "table.csv.gz"


def row(ending, difference=None, error=0.01, *, decision="undecided", bits=4, chance=0.0, **more):
    found = dict.fromkeys(CONFIGURATION) | {"quantizer": "rtn", "format": "int", "bits": bits, "options": "{}"}
    found |= {"ending": ending, "tokens": 1_000_000, "params": 20_000, **more}
    if difference is not None:
        found |= {"difference": difference, "error": error, "chance": chance, "detectable": 3 * error}
        found |= {"decision": decision}
    return found


def record(*rows):
    return {"kind": "probe", "rows": [row("trunk"), *rows]}


def here(*rows, bits=(4,)):
    found = endings(bits, 2e4, 1e6, {"out/probe.json": record(*rows)})
    return [choice for choice in found.choices if choice.origin is Origin.HERE]


@pytest.mark.parametrize(("N", "D", "bits"), [(220e6, 26e9, 4), (1e9, 1e13, 1), (86e6, 2.3e9, 6), (2e4, 1.6e6, 2)])
def test_the_share_is_the_published_formula(N, D, bits):
    tokens_per_byte = Decimal(D) * 8 / (Decimal(N) * bits)
    as_printed = (tokens_per_byte.ln() - Decimal(str(A)) / tokens_per_byte.ln()).exp() / tokens_per_byte
    assert qat_share(N, D, bits) == pytest.approx(float(as_printed), rel=1e-12)
    assert qat_share(N, 2 * D, bits) > qat_share(N, D, bits) > qat_share(N, D, bits + 1)


def test_a_share_needs_more_than_a_token_per_byte():
    assert qat_share(1e9, 5e8, 4) == 0
    assert endings((4,), 1e9, 5e8, {}).shares == ()


def test_a_share_says_how_far_it_is_from_its_runs():
    [share] = endings((4,), 1e9, 1e11, {}).shares
    assert share.beyond == {}
    [share] = endings((8,), 8.6e6, 1e11, {}).shares
    assert share.beyond == pytest.approx({"N": 10, "bits": 8 / 6})


@pytest.mark.parametrize(
    ("rows", "verdict", "best", "rivals"),
    [
        ([("decay:10%", -0.2, "better"), ("average:4", -0.1, "better")], Verdict.ONE, "decay:10%", []),
        ([("decay:10%", -0.13, "better"), ("average:4", -0.1, "better")], Verdict.SEVERAL, "decay:10%", ["average:4"]),
        (
            [("decay:10%", -0.03, "better"), ("qat:10%@4", 0.0, "undecided")],
            Verdict.SEVERAL,
            "decay:10%",
            ["qat:10%@4"],
        ),
        ([("decay:10%", 0.1, "worse"), ("average:4", 0.0, "same")], Verdict.TRUNK, None, []),
        ([("decay:10%", 0.1, "worse"), ("average:4", -0.015, "undecided")], Verdict.UNDECIDED, None, []),
    ],
)
def test_a_verdict(rows, verdict, best, rivals):
    [choice] = here(*(row(name, value, decision=said) for name, value, said in rows))
    assert choice.verdict is verdict
    assert (choice.best.ending if choice.best else None) == best
    assert [one.ending for one in choice.rivals] == rivals


def test_a_lead_is_decided_where_intervals_do_not_overlap():
    for lead, sure in ((0.0401, True), (0.0399, False)):
        rows = (row("decay:10%", -0.1, decision="better"), row("average:4", lead - 0.1, decision="better"))
        assert (here(*rows)[0].verdict is Verdict.ONE) is sure


def test_errors_hold_what_chance_does_and_each_way_to_quantize_is_a_choice():
    rows = [
        row("decay:10%", -0.1, 0.003, chance=0.004, decision="better", quantizer=quantizer, bits=bits)
        for quantizer, bits in product(("rtn", "gptq"), (3, 4))
    ]
    found = here(*rows, bits=(3, 4))
    assert [(choice.bits, choice.row["quantizer"]) for choice in found] == [
        (3, "rtn"), (3, "gptq"), (4, "rtn"), (4, "gptq")
    ]  # fmt: skip
    [effect] = found[0].effects
    assert effect.error == pytest.approx(0.005)
    assert (effect.difference.low, effect.difference.high) == pytest.approx((-0.11, -0.09))
    assert len(here(*rows, bits=(4,))) == 2


def test_bits_without_a_record_are_named():
    found = endings((3, 4, 16), None, None, {"out/probe.json": record(row("decay:10%", -0.1, decision="better"))})
    assert (found.absent, found.recorded) == ((3,), (4.0,))
    assert found.shares == ()


def test_size_is_that_of_the_largest_tokens():
    later = row("decay:10%", -0.1, tokens=2_000_000, params=30_000)
    assert recorded_size([record(later, row("average:4", 0.1))]) == (30_000, 2_000_000)
    assert recorded_size([record(row("average:4", 0.1, tokens=None))])[1] == 1_000_000


def test_the_rows_of_the_study_are_its_table():
    """Every number again, with loops, from the table."""
    losses = defaultdict(list)
    with gzip.open(TABLE, "rt", encoding="utf-8", newline="") as handle:
        for line in csv.DictReader(handle):
            plain = (line["optimizer"], line["activations"], line["kv"]) == ("adamw", "full", "full")
            plain &= float(line["weight_decay"]) == 0.1 and float(line["peak_learning_rate"]) == 0.003
            late = float(line["low_precision_share"]) < 1
            kept = plain and line["schedule"] in ("wsd", "constant") and (line["weights"] == "full" or late)
            if not kept or line["quantizer"] == "none" or not line["text"].startswith("books"):
                continue
            name = {"annealed": "decay:20%"}.get(line["part"], line["part"].replace("-", ":"))
            if late and line["part"] == "annealed":
                name = f"decay+qat:20%@{line['weights']}"
            reached = float(line["tokens_per_param"])
            ratio = min((5.0 * 2**k for k in range(12)), key=lambda planned: abs(math.log(reached / planned)))
            key = line["run"], int(line["params"]), float(line["bits"]), ratio, name
            losses[key].append(float(line["loss_q"]))
    cells = defaultdict(list)
    for (run, params, bits, ratio, name), values in losses.items():
        trunk = losses.get((run, params, bits, ratio, "trunk"))
        if name != "trunk" and trunk:
            cells[name, params, bits, ratio].append(statistics.fmean(values) - statistics.fmean(trunk))
    expected = {key: values for key, values in cells.items() if len(values) > 1}
    found = {(r["ending"], r["params"], r["bits"], r["tokens_per_param"]): r for r in study_rows()}
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        error = statistics.stdev(values) / math.sqrt(len(values))
        got = found[key]["runs"], found[key]["difference"], found[key]["error"]
        assert got == pytest.approx((len(values), statistics.fmean(values), error), rel=1e-4), key


def of_study(bits, N, ratio):
    return [one for one in endings((bits,), N, N * ratio, {}).choices if one.origin is Origin.STUDY]


def place(effect):
    return effect.at["N"], effect.at["D"] / effect.at["N"]


def test_the_study_answers_at_the_nearest_size_and_ratio():
    nearest = of_study(4, 14_000, 70)[0]
    assert set(map(place, nearest.effects)) == {(13_408, 80)}
    assert {"decay:20%", "decay+qat:20%@4"} <= {effect.ending for effect in nearest.effects}
    assert nearest.beyond == {}
    for effect in nearest.effects:
        half = max(2, stats.t.ppf(0.975, effect.runs - 1)) * effect.error
        assert effect.difference.high - effect.difference.value == pytest.approx(half)
        decided = abs(effect.difference.value) > half
        assert (effect.decision is not Decision.UNDECIDED) == decided
    assert of_study(4, 1e9, 100)[0].beyond["N"] > 100
    # training at 4 bits says nothing of serving at 3
    assert all("@4" not in effect.ending for one in of_study(3, 2e4, 50) for effect in one.effects)


@pytest.mark.parametrize(("bits", "N", "ratio"), product((2, 4), (13_408, 25e3, 6e5, 1e9), (6, 82, 1_280)))
def test_each_ending_of_the_study_is_nearest_to_the_plan(bits, N, ratio):
    """With loops: no other row of the ending has a smaller factor in N times factor in D/N."""

    def factors(size, tokens):
        return max(N / size, size / N), max(ratio / tokens, tokens / ratio)

    least = {}
    for one in study_rows():
        if one["bits"] == bits and ("@" not in one["ending"] or one["ending"].endswith(f"@{bits}")):
            distance = math.prod(factors(one["params"], one["tokens_per_param"]))
            least[one["ending"]] = min(distance, least.get(one["ending"], math.inf))
    choices, found = of_study(bits, N, ratio), {}
    for choice in choices:
        [there] = set(map(place, choice.effects))
        expected = dict(zip(("N", "D/N"), factors(*there)))
        assert choice.beyond == pytest.approx({name: by for name, by in expected.items() if by >= 1.5})
        found |= {effect.ending: math.prod(factors(*there)) for effect in choice.effects}
    assert found == pytest.approx(least)
    assert sum(len(choice.effects) for choice in choices) == len(least)
    assert list(found.values()) == sorted(found.values())


def test_an_ending_is_compared_with_those_at_its_place_alone(monkeypatch):
    def measured(ending, N, ratio, difference):
        at = {"params": N, "tokens_per_param": ratio, "bits": 2.0}
        return {"ending": ending, **at, "runs": 6.0, "difference": difference, "error": 0.001}

    rows = [
        measured("decay:20%", 1e4, 80.0, -0.2), measured("decay:20%", 1e4, 1_280.0, 0.1),
        measured("ema:0.99", 1e4, 80.0, -0.1), measured("lawa:8", 1e4, 80.0, -0.01),
        measured("decay:20%", 5e5, 5.0, 0.0), measured("decay:20%", 5e5, 10.0, 0.3), measured("lawa:8", 5e5, 10.0, 0.2),
    ]  # fmt: skip
    monkeypatch.setattr("ptq_eval.laws.plan.endings.study_rows", lambda: tuple(rows))

    def seen(N, ratio):
        return [
            (place(one.effects[0]), [effect.ending for effect in one.effects], one.verdict, dict(one.beyond))
            for one in of_study(2, N, ratio)
        ]

    annealed = ((1e4, 1_280), ["decay:20%"], Verdict.TRUNK, {})
    averaged = ((1e4, 80), ["ema:0.99", "lawa:8"], Verdict.ONE, pytest.approx({"D/N": 16}))
    assert seen(1e4, 1_280) == [annealed, averaged]
    together = ["decay:20%", "ema:0.99", "lawa:8"]
    assert seen(1e4, 82) == [((1e4, 80), together, Verdict.ONE, {})]
    large = ((5e5, 10), ["decay:20%", "lawa:8"], Verdict.TRUNK, {})
    assert seen(5e5, 11) == [large, ((1e4, 80), ["ema:0.99"], Verdict.ONE, pytest.approx({"N": 50, "D/N": 80 / 11}))]


def test_annealing_is_worse_at_two_bits_where_the_study_trained_longest():
    """At D/N 1,280 it was measured, so that what it did at 80 says nothing."""
    [first, *others] = of_study(2, 13_408, 1_280)
    [decay] = [effect for effect in first.effects if effect.ending == "decay:20%"]
    assert (place(decay), decay.decision) == ((13_408, 1_280), Decision.WORSE)
    assert first.verdict is Verdict.TRUNK
    assert all(effect.ending != "decay:20%" for choice in others for effect in choice.effects)


def test_a_plan_holds_them_and_counts_as_answered():
    measured = {"out/probe.json": record(row("decay:10%", -0.1, decision="better"))}
    found = plan(from_preset(KUMAR_2024), Question(params=2e4, tokens=1e6, serve_bits=(4,)), measured)
    assert found.endings.measured
    assert found.answered
    assert found.endings.to_dict()["choices"][0]["best"] == "decay:10%"
    assert not plan(from_preset(KUMAR_2024), Question(params=1e9, serve_bits=(4,))).endings.choices
