"""Contract and oracle: the paper of the precision study says what the stored tables say, and nothing by hand."""

from __future__ import annotations

import math
import re
import statistics
from decimal import Decimal

import pandas as pd
import pytest

from ptq_eval.report.paper import project
from results.paper import build, dispute, others, sentences, study, tables, words
from results.precision import findings, number_formats
from tests.report.paper.support import macros

MAIN = build.HERE / "main.tex"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The project, without figures, which no test reads."""
    folder = tmp_path_factory.mktemp("study") / "paper"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project.drawing, "write", lambda *args, **options: [])
        assert build.build(folder).gone == []
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return macros(folder)


@pytest.fixture(scope="module")
def rows():
    """The stored table as plain records, read without any code of the paper."""
    table = pd.read_csv(study.TABLE, dtype={"weights": str, "activations": str, "kv": str}, low_memory=False)
    usual = {"optimizer": "adamw", "weight_decay": 0.1, "peak_learning_rate": 3e-3}
    for name, value in {**usual, "weights": "full", "activations": "full", "kv": "full"}.items():
        table = table[table[name] == value]
    table = table[(table["quantizer"] != "none") & table["status"].isin(["ok", "partial"])]
    return table[(table["low_precision_share"] == 1) & (table["schedule"] == "wsd")].to_dict("records")


def plain(text):
    return text.replace("$-$", "-").replace(r" $\pm$ ", " ± ").replace("$", "").replace("\\%", "%")


def mean_of_run(rows, run, part, ratio, bits, name):
    """A loss of one run at one D, averaged over quantizers and groupings in a loop."""
    values = [
        row[name] for row in rows
        if (row["text"], row["params"], row["seed"]) == run and row["part"] == part and row["bits"] == bits
        and abs(row["tokens_per_param"] / ratio - 1) < 0.03
    ]  # fmt: skip
    return statistics.fmean(values) if values else math.nan


def effect_of(values):
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def agrees(text, mean, error):
    """Whether `0.123 ± 0.045` is the size of a mean and its error, to the digits shown."""
    value, _, shown = text.partition(" ± ")
    for one, exact in ((value, abs(mean)), (shown, error)):
        ulp = Decimal(1).scaleb(Decimal(one).as_tuple().exponent)
        if abs(Decimal(one) - Decimal(exact)) > ulp * Decimal("0.51"):
            return False
    return True


def test_the_prose_holds_no_number(folder):
    text = re.sub(r"(?<!\\)%.*", "", MAIN.read_text())
    body = text[text.index(r"\begin{document}") :]
    body = re.sub(r"\\begin\{equation\}.*?\\end\{equation\}|\$[^$]*\$", "", body, flags=re.DOTALL)
    body = re.sub(r"\\(citep|ref|eqref|label|input|figurefile|bibliography)\{[^}]*\}", "", body)
    assert re.findall(r".{20}\d.{20}", body.replace("\n", " ")) == []
    assert (folder / "main.tex").read_text() == MAIN.read_text()


def test_every_macro_is_defined_and_used(found):
    text = re.sub(r"(?<!\\)%.*", "", MAIN.read_text())
    used = set(re.findall(r"\\(ptq[A-Z]\w+)", text))
    assert used == set(found)


def test_ten_to_fifteen_works_are_cited_and_all_are_reviewed(folder):
    cited = re.findall(r"@\w+\{([^,]+),", (folder / "generated" / "references.bib").read_text())
    assert 10 <= len(cited) <= 15
    review = (build.HERE / "lit_review.md").read_text()
    identifiers = re.findall(r"arXiv:(\d{4}\.\d{5})", (folder / "generated" / "references.bib").read_text())
    assert len(identifiers) >= len(cited) - 1
    assert [one for one in identifiers if one not in review] == []


def test_counts_are_those_of_the_table(found):
    table = pd.read_csv(study.TABLE, low_memory=False)
    measured = table[(table["quantizer"] != "none") & table["status"].isin(["ok", "partial"])]
    assert found["ptqRuns"] == str(len(set(measured["run"])))
    assert found["ptqMeasurements"] == f"{len(measured):,}"
    places = {(row["run"], row["part"], row["step"]) for row in measured.to_dict("records")}
    assert found["ptqCheckpoints"] == f"{len(places):,}"


def test_what_annealing_does_agrees_with_plain_loops(found, rows):
    text = plain(found["ptqAnnealing"])
    place = float(re.search(r"D/N = ([\d,]+)", text)[1].replace(",", ""))
    runs = {(row["text"], row["params"], row["seed"]) for row in rows}
    numbers = re.findall(r"\d+\.\d+ ± \d+\.\d+", text)
    for shown, (name, bits) in zip(numbers, (("loss_fp", 3), ("delta", 3), ("loss_q", 3)), strict=True):
        differences = [
            mean_of_run(rows, run, "annealed", place, bits, name) - mean_of_run(rows, run, "trunk", place, bits, name)
            for run in sorted(runs)
        ]
        known = [value for value in differences if not math.isnan(value)]
        assert len(known) >= 3
        assert agrees(shown, *effect_of(known)), (name, shown)


def test_the_largest_rise_agrees_with_plain_loops(found, rows):
    text = plain(found["ptqVerdictTokens"])
    said = re.search(r"by (\d+\.\d+ ± \d+\.\d+) nats per token at (\d) bits from D/N = ([\d,]+) to ([\d,]+)", text)
    assert said
    low, high = (float(one.replace(",", "")) for one in said.groups()[2:])
    by_size = {}
    for run in sorted({(row["text"], row["params"], row["seed"]) for row in rows}):
        first, last = (mean_of_run(rows, run, "annealed", at, int(said[2]), "loss_q") for at in (low, high))
        corpus = "code" if run[0].startswith("stdlib") else "books"
        if not math.isnan(last - first):
            by_size.setdefault((corpus, run[1]), []).append(last - first)
    assert any(agrees(said[1], *effect_of(values)) for values in by_size.values())


def test_other_measurements_give_other_numbers(found, folder, tmp_path, monkeypatch):
    table = findings.read()
    table.loc[table["ending"] == "annealed", "loss_q"] += 0.01 * table["tokens_per_param"]
    monkeypatch.setattr(findings, "read", lambda: table)
    monkeypatch.setattr(project.drawing, "write", lambda *args, **options: [])
    build.build(tmp_path / "paper")
    other = macros(tmp_path / "paper")
    assert other["ptqHarmCounts"] != found["ptqHarmCounts"]
    assert other["ptqRuns"] == found["ptqRuns"]
    name = "generated/tables/harm.tex"
    assert (tmp_path / "paper" / name).read_text() != (folder / name).read_text()


def test_clear_effects_are_counted_on_both_sides_of_zero_and_of_usual_runs_alone():
    rows = [
        ("", 2.0, 0.3, 0.1, 0.2), ("", 2.0, -0.3, 0.1, 0.2), ("", 2.0, 0.2, 0.1, 0.2), ("", 2.0, -0.2, 0.1, 0.0),
        ("", 3.0, -0.1, 0.0, 0.0), ("optimizer muon", 3.0, 0.1, 0.1, 0.2),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["unusual", "bits", "delta", "delta_se", "noise_floor"])
    assert sentences.clear(table) == "50 % at 2 bits and 100 % at 3 bits"


def test_the_shares_of_clear_effects_are_those_of_the_table(found):
    """With a loop over plain rows of the stored table: every schedule and average of runs that change nothing else."""
    kept = {"optimizer": "adamw", "weight_decay": 0.1, "peak_learning_rate": 3e-3, "low_precision_share": 1}
    kept |= {"weights": "full", "activations": "full", "kv": "full"}
    counted = {}
    table = pd.read_csv(study.TABLE, dtype={"weights": str, "activations": str, "kv": str}, low_memory=False)
    for row in table.to_dict("records"):
        if row["status"] in ("ok", "partial") and row["quantizer"] != "none" and all(row[k] == kept[k] for k in kept):
            error = math.hypot(row["delta_se"], row["noise_floor"] / 2)
            counted.setdefault(int(row["bits"]), []).append(abs(row["delta"]) > 2 * error)
    shown = re.findall(r"(\d[\d.]*) % at (\d) bits", plain(found["ptqClear"]).replace(r"\,", " "))
    assert [int(bits) for _, bits in shown] == sorted(counted)
    for share, bits in shown:
        assert float(share) == pytest.approx(100 * statistics.fmean(counted[int(bits)]), rel=0.05)


def synthetic(slope=0.0, gain=0.1, seeds=(0, 1, 2)):
    """Runs whose δ is D/N / 1,000 at a constant rate, and whose branches have a loss lower by `gain`."""
    made = []
    for seed in seeds:
        for ratio in (20, 40, 80, 160):
            for ending in ("constant", "annealed"):
                fall = gain * (ending == "annealed")
                for bits in (2, 3, 4):
                    delta = ratio / 1000 * (1 + 0.5 * (ending == "annealed")) / (2**bits - 1) ** 2
                    loss = 4 - 0.2 * math.log2(ratio / 20) - fall + 0.001 * seed
                    made.append({
                        "text": "books.txt", "width": 32, "layers": 1, "params": 1000, "seed": seed, "corpus": "books",
                        "ending": ending, "tokens_per_param": float(ratio), "bits": float(bits), "loss_fp": loss,
                        "delta": delta, "loss_q": loss + delta + slope * math.log2(ratio / 20) * (1 + 0.01 * seed),
                    })  # fmt: skip
    return pd.DataFrame(made)


def test_known_exponents_factors_and_losses_are_recovered():
    runs = synthetic()
    for row in study.cells(study.exponents(runs), "ending", "bits").to_dict("records"):
        assert row["effect"].mean == pytest.approx(1)
    ratios = study.cells(study.bit_ratios(runs), "bits").set_index("bits")["effect"]
    assert math.exp(ratios[2].mean) == pytest.approx((7 / 3) ** 2)
    # a branch lies 0.1 below its trunk: half a doubling further down, so its trunk has √2 times the δ there
    equal = study.cells(study.at_equal_loss(runs), "tokens_per_param").set_index("tokens_per_param")["effect"]
    assert math.exp(equal[20].mean) == pytest.approx(1.5 / math.sqrt(2))
    assert 160 not in equal.index  # its loss is below all of the trunk


def test_a_direction_is_said_only_where_it_is_decided():
    rising, falling = dispute.harm(synthetic(slope=0.5)), dispute.harm(synthetic())
    assert "0 of 3 doublings lower it, 3 raise it" in rising[0]
    assert falling[1] == "It rises decidedly nowhere."
    assert "minimum" in falling[2]
    assert "all 3 doublings lower it" in falling[0]
    assert words.moves(study.effect([0.1, 0.11, 0.12]), "δ").startswith("raises δ by 0.1100")
    assert "open" in words.moves(study.effect([-0.1, 0.1, 0.2]), "δ")
    assert words.sign(study.effect([0.1])) == 0
    assert tables.shown(study.effect([-0.1, -0.11, -0.12])) == r"\textbf{$-$0.1100(58)}"
    assert tables.shown(study.NONE) == "--"


@pytest.mark.parametrize(
    ("unusual", "name"),
    [
        ("weights 4 activations 4 kv 4", "W4 A4 KV4"),
        ("weights fp8_e4m3", "W fp8_e4m3"),
        ("weights 4 in the branch alone", "W4, branch alone"),
        ("optimizer muon", "muon"),
        ("peak_learning_rate 0.001", "rate 0.001"),
        ("weight_decay 0.0", "weight decay 0.0"),
    ],
)
def test_trainings_are_named(unusual, name):
    assert others.training_name(unusual) == name


def test_floats_against_integers_are_those_of_the_table(found):
    """FP8 E4M3 in groups of 16 at the ends of branches, from plain rows of the stored table."""
    table = pd.read_csv(number_formats.TABLE).to_dict("records")
    logs = {}
    for row in table:
        if row["grouping"] == "groups" and row["part"] == "annealed" and row["tokens_per_param"] > 19:
            at = (row["params"], row["seed"], row["tokens_per_param"])
            logs.setdefault(at, {})[row["format"]] = math.log(row["kl"])
    runs = {}
    for (params, seed, _), own in logs.items():
        runs.setdefault((params, seed), []).append(own["fp8_e4m3"] - own["int8_narrow"])
    mean, error = effect_of([statistics.fmean(own) for own in runs.values()])
    [text] = re.findall(r"(?<!MX)FP8 E4M3 (\S+ ± \S+?),", plain(found["ptqFloats"]))
    assert agrees(text, math.exp(mean), math.exp(mean) * error)
