"""Contract: `ptq-eval plan`: what it prints and writes, and that a wrong question is one line with its own code."""

import itertools
import json
import math
import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ptq_eval import errors
from ptq_eval.cli.main import cli
from ptq_eval.records import Checkpoint, Measurement, Scheme, Trial
from ptq_eval.results.store import Store
from tests.cli.support import start

FIGURES = ("loss_vs_tokens", "loss_over_bits", "precision_vs_budget")


def plan_of(folder):
    return json.loads((folder / "plan.json").read_text(encoding="utf-8"))


def asked(content, ask):
    return [answer for answer in content["answers"] if answer["ask"] == ask]


def test_a_plan_from_the_default_preset(ptq_eval, tmp_path):
    answer = ptq_eval("plan", "--params", "220M", "--tokens", "26B", "--serve-bits", "3,4", "--max-loss", "0.01")
    assert (answer.code, answer.err) == (0, "")
    for words in (
        "KUMAR_2024",
        "175B",
        "D 6.74×",
        "7.00 bits",
        "train longer",
        "training longer harms",
        "no answer has an interval",
    ):
        assert words in answer.out, words
    out = tmp_path / "work" / "kumar_2024-plan"
    assert f"Written to {out.name}" in answer.out
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf", "csv")}
    content = plan_of(out)
    assert {"version", "source", "question", "answers", "endings", "sentences", "cautions"} == set(content)
    [turn] = [a for a in asked(content, "critical_tokens") if a["at"]["bits"] == 4]
    assert turn["values"]["D"] == {"value": pytest.approx(1.753e11, rel=1e-3), "low": None, "high": None}
    assert turn["beyond"] == {"D": pytest.approx(6.743, rel=1e-3)}
    for sentence in content["sentences"]:
        assert sentence in " ".join(answer.out.split())


def test_the_figures_show_the_answers(ptq_eval, tmp_path):
    assert ptq_eval("plan", "--params", "1B", "--tokens", "20B", "-o", tmp_path / "out").code == 0
    turns = {a["at"]["bits"]: a["values"]["D"]["value"] for a in asked(plan_of(tmp_path / "out"), "critical_tokens")}
    loss, over_bits, budget = (pd.read_csv(tmp_path / "out" / "figures" / f"{name}.csv") for name in FIGURES)
    marked = loss[loss["kind"] == "critical"].set_index("bits")["tokens"]
    assert marked.to_dict() == pytest.approx({bits: D for bits, D in turns.items() if D <= 1e13})
    assert (loss[loss["kind"] == "curve"]["beyond"] > 1).all()  # a size that was not fitted
    assert len(over_bits[over_bits["kind"] == "grid"]) == 61 * 61
    free = budget[budget["setting"] == "free"]
    assert free["bits"].round(2).unique() == [7.0]


@pytest.mark.slow
def test_counts_in_any_notation_are_one_plan(ptq_eval, tmp_path):
    plans = []
    for i, (N, D) in enumerate((("1e9", "2e10"), ("1000M", "20B"))):
        assert ptq_eval("plan", "--params", N, "--tokens", D, "-o", tmp_path / str(i)).code == 0
        plans.append((tmp_path / str(i) / "plan.json").read_bytes())
    assert plans[0] == plans[1]


def test_a_law_that_is_refuted_is_refused_in_words_with_what_would_be_answered(ptq_eval, tmp_path):
    folder = Path(__file__).parents[2] / "results" / "embedded"
    question = ("plan", "--fit", folder, "--quantizer", "gptq", "--params", "160k", "-o", tmp_path / "plan")
    answer = ptq_eval(*question, "--serve-bits", "3")
    answer.refuses(50, "D_crit at 3 bits: ", "--tokens 64.1M or less", "measure checkpoints of larger D")
    assert "refuted" not in answer.err
    assert ptq_eval(*question, "--serve-bits", "3", "--tokens", "64M").code == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((), errors.PlanError, "--params"),
        (("--params", "1"), errors.UnitsError, "did you mean 1B?"),
        (("--params", "1B", "--tokens", "20"), errors.UnitsError, "--tokens"),
        (("--budget", "21"), errors.UnitsError, "1e21"),
        (("--memory", "8"), errors.UnitsError, "8GB"),
        (("--params", "-3"), errors.OptionError, "positive"),
        (("--params", "0"), errors.OptionError, "positive"),
        (("--params", "nonsense"), errors.OptionError, "not a number"),
        (("--params", "lots"), errors.OptionError, "'lots'"),
        (("--params", "1B", "--serve-bits", "4,x"), errors.BitsError, "an entry of --serve-bits"),
        (("--params", "1B", "--serve-bits", "40"), errors.BitsError, "40"),
        (("--params", "1B", "--max-loss", "0.1"), errors.PlanError, "--tokens"),
        (("--params", "1B", "--tokens", "20B", "--max-loss", "-1"), errors.PlanError, "-1"),
        (("--params", "1B", "--served-tokens", "1T"), errors.PlanError, "--budget"),
        (("--params", "1B", "--tokens", "1B", "--served-tokens", "1T", "--serve-cost", "0"), errors.PlanError, "cost"),
        (("--params", "1B", "--preset", "KUMAR"), errors.UnknownPluginError, "KUMAR_2024"),
        (("--params", "1B", "--preset", "nothing"), errors.UnknownPluginError, "choose one of these"),
        (("--params", "1B", "--preset", "SUN_2025"), errors.PlanError, "E4M3"),
        (("--params", "1B", "--preset", "CHEN_2025"), errors.PlanError, "--group-size 128"),
        (("--params", "1B", "--group-size", "128"), errors.PlanError, "EPOCH_2024,CHEN_2025"),
        (("--params", "1B", "--serve-format", "E4M3"), errors.PlanError, "SUN_2025"),
        (("--params", "1B", "--preset", "SUN_2025", "--serve-bits", "4"), errors.PlanError, "--serve-bits 4"),
        (("--params", "1B", "--preset", "KUMAR_2024,OUYANG_2024"), errors.PlanError, "do not go together"),
        (("--params", "1B", "--quantizer", "rtn"), errors.OptionError, "--fit OUT"),
        (("--params", "1B", "--fit", "out", "--no-offsets"), errors.OptionError, "--no-offsets"),
        (("--params", "1B", "--preset", ""), errors.UnknownPluginError, "choose one of these"),
        (("--params", "1B", "--fit", "nowhere"), errors.NothingToFitError, "nowhere"),
        (("--params", "1B", "--fit", "a", "--preset", "b"), errors.OptionError, "--preset"),
    ],
)
def test_a_wrong_question_is_one_line(ptq_eval, arguments, error, words):
    answer = ptq_eval("plan", *arguments)
    assert answer.code == error.exit_code
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("ptq-eval: ")
    assert words in answer.err
    assert "Traceback" not in answer.err


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """An output folder of three sizes at four D, RTN at 2 and 3 bits, with records drawn from known laws."""
    rng, store, checkpoints = np.random.default_rng(0), Store(tmp_path_factory.mktemp("simulated")), []
    difficulty = rng.normal(0, 0.2, 24)
    with store.writer() as writer:
        for N, ratio in itertools.product((100_000, 200_000, 400_000), (10, 30, 100, 300, 1000)):
            D = N * ratio
            checkpoint = Checkpoint(run=f"size{N}", step=ratio, tokens=D, params=N, weights_sha=f"{N}-{ratio}")
            checkpoints.append(checkpoint)
            before = 2 + 30 * N**-0.3 + 200 * D**-0.4 + difficulty + rng.normal(0, 0.002, 24)
            writer.append(_measured(Trial(checkpoint, "text", "protocol"), before))
            for bits in (2, 3):
                delta = 0.3 * (D / N) ** 0.4 * np.exp(-bits / 0.8) * (1 + rng.normal(0, 0.03)) + rng.normal(
                    0, 0.002, 24
                )
                trial = Trial(checkpoint, "text", "protocol", "rtn", "1", scheme=Scheme(bits, 16))
                writer.append(_measured(trial, before + delta))
    store.write_run(
        {
            **{key: {} for key in ("fixed", "quantizer_options", "digests")},
            "checkpoints": [c.to_dict() for c in checkpoints],
        }
    )
    assert CliRunner().invoke(cli, ["fit", str(store.folder), "--bootstrap", "20"]).exit_code == 0
    return store.folder


def _measured(trial, losses):
    quantized = {} if trial.scheme is None else {"kl": (0.1,) * 24, "agree": (5,) * 24}
    return Measurement(trial, nll=tuple(7 * losses), n_tokens=(7,) * 24, **quantized)


def test_a_plan_from_measurements(ptq_eval, simulated, tmp_path):
    question = ("--params", "800k", "--tokens", "80M", "--serve-bits", "2", "--memory", "100kB")
    answer = ptq_eval("plan", "--fit", simulated, *question, "-o", tmp_path / "plan")
    assert (answer.code, answer.err) == (0, "")
    content = plan_of(tmp_path / "plan")
    assert content["source"]["fitted_range"] == {"N": [1e5, 4e5], "D": [1e6, 4e8], "bits": [2, 3]}
    [turn] = asked(content, "critical_tokens")
    true = (0.4 * 200 / (0.4 * 0.3 * 8e5**-0.4 * math.exp(-2 / 0.8))) ** (1 / 0.8)
    assert turn["values"]["D"]["low"] < true < turn["values"]["D"]["high"]
    assert turn["beyond"] == {"N": pytest.approx(2.0)}
    assert "gamma_w, gamma_a, gamma_kv not known" in answer.out
    assert "90 % interval over 3 runs" in answer.out
    assert set(asked(content, "loss")[0]["values"]) == {"before", "damage", "after"}
    assert any(a["at"].get("memory") == 1e5 and a["values"] for a in asked(content, "optimum"))
    curves = pd.read_csv(tmp_path / "plan" / "figures" / "loss_vs_tokens.csv")
    curve = curves[curves["kind"] == "curve"]
    assert (curve["low"] < curve["loss"]).all()
    assert (curve["loss"] < curve["high"]).all()


def test_measurements_that_determine_nothing_answer_nothing(ptq_eval, out):
    assert ptq_eval("fit", out, "--bootstrap", "10").code == 0
    answer = ptq_eval("plan", "--fit", out, "--params", "20k", "--tokens", "100k")
    assert answer.code == errors.PlanError.exit_code
    assert "no fit: 3 points for 3 constants" in answer.err
    assert "measure checkpoints of larger D" in answer.err
    assert not (out / "plan").exists()


def test_a_stored_fit_that_is_none(ptq_eval, tmp_path):
    (tmp_path / "fit.json").write_text("{")
    answer = ptq_eval("plan", "--fit", tmp_path, "--params", "1B")
    assert answer.code == errors.NothingToFitError.exit_code
    (tmp_path / "fit.json").write_text('{"fits": 3}')
    assert ptq_eval("plan", "--fit", tmp_path, "--params", "1B").code == errors.NothingToFitError.exit_code


def test_a_plan_from_a_table_of_data(ptq_eval, tmp_path):
    """Chinchilla's law fitted to a table answers what it can, with the table's own ranges."""
    rows = [(N, D, 1.7 + 400 * N**-0.34 + 2000 * D**-0.37) for N in (1e8, 3e8, 1e9, 3e9) for D in (1e9, 1e10, 1e11)]
    frame = pd.DataFrame(rows, columns=["N", "D", "loss"])
    frame["loss"] += np.random.default_rng(0).normal(0, 1e-4, len(frame))
    frame.to_csv(tmp_path / "runs.csv", index=False)
    fitted = ptq_eval("fit", "--data", tmp_path / "runs.csv", "--law", "chinchilla", "-o", tmp_path / "out")
    assert fitted.code == 0, fitted.err
    answer = ptq_eval("plan", "--fit", tmp_path / "out", "--params", "10B", "--tokens", "100B", "--serve-bits", "4")
    assert (answer.code, answer.err) == (0, "")
    content = plan_of(tmp_path / "out" / "plan")
    [loss] = asked(content, "loss")
    assert loss["values"]["before"]["value"] == pytest.approx(1.7 + 400 * 1e10**-0.34 + 2000 * 1e11**-0.37, abs=3e-3)
    assert loss["beyond"] == {"N": pytest.approx(10 / 3, rel=1e-6)}
    assert "C_T" in loss["missing"]
    assert loss["values"]["before"]["low"] < loss["values"]["before"]["value"] < loss["values"]["before"]["high"]
    names = {path.name for path in (tmp_path / "out" / "plan" / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES[:2] for kind in ("png", "pdf", "csv")}
    (tmp_path / "out" / "replicates.npz").write_bytes(b"no zip")
    broken = ptq_eval("plan", "--fit", tmp_path / "out", "--params", "10B")
    assert broken.code == errors.NothingToFitError.exit_code
    (tmp_path / "out" / "replicates.npz").unlink()
    without = ptq_eval("plan", "--fit", tmp_path / "out", "--params", "10B")
    assert (without.code, without.err.count("\n")) == (errors.NothingToFitError.exit_code, 1)
    assert "repeat ptq-eval fit --data for runs.csv" in without.err


def test_a_plan_fits_nothing_and_reads_each_record_once(ptq_eval, simulated, tmp_path, monkeypatch):
    parsed, parse = [], Measurement.from_dict
    monkeypatch.setattr(Measurement, "from_dict", lambda data: parsed.append(1) or parse(data))
    fitter = import_module("ptq_eval.laws.fit.fit")
    monkeypatch.setattr(fitter, "_solve", lambda *_, **__: pytest.fail("a plan fitted something"))
    answer = ptq_eval("plan", "--fit", simulated, "--params", "200k", "-o", tmp_path / "plan")
    assert (answer.code, answer.err) == (0, "")
    assert len(parsed) == 45


def test_a_fit_that_does_not_belong_to_the_records_is_one_line_with_its_remedy(ptq_eval, simulated, tmp_path):
    """Records added after the fit, a folder of an older version without replicates, and records without any fit."""
    folder = shutil.copytree(simulated, tmp_path / "copy")
    [records] = (folder / "records").iterdir()
    lines = records.read_bytes().splitlines(keepends=True)

    def refused(error, words):
        answer = ptq_eval("plan", "--fit", folder, "--params", "200k")
        assert (answer.code, answer.out, answer.err.count("\n")) == (error.exit_code, "", 1)
        assert words in answer.err
        assert f"ptq-eval fit {folder}" in answer.err

    records.write_bytes(b"".join(lines[:-1]))
    refused(errors.OutputMismatchError, "made of other records")
    records.write_bytes(b"".join(lines))
    (folder / "replicates.npz").unlink()
    refused(errors.NothingToFitError, "no bootstrap replicates")
    (folder / "fit.json").unlink()
    refused(errors.NothingToFitError, "no fit to plan from")
    assert ptq_eval("fit", folder, "--bootstrap", "10").code == 0
    assert ptq_eval("plan", "--fit", folder, "--params", "200k").code == 0


def test_what_the_fit_does_not_identify_the_plan_does_not_give(ptq_eval, simulated, tmp_path):
    """A verdict in fit.json holds for the plan from the same folder, at its bits and for the nearest run."""
    folder = shutil.copytree(simulated, tmp_path / "copy")
    verdict = {"quantizer": "rtn", "run": "size100000", "params": 1e5, "bits": 3.0, "predicted": None}
    reason = {"kind": "delta_not_significant", "bits": 3.0}
    verdict |= {"verdict_kind": "not_identified", "reason": reason}
    found = {**verdict, "run": "size400000", "params": 4e5, "predicted": {"value": 1e9}, "verdict_kind": "predicted"}
    two = [
        {**entry, "bits": 2.0, "predicted": {"value": 1e8}, "verdict_kind": "predicted"} for entry in (verdict, found)
    ]
    other = {**verdict, "quantizer": "gptq", "bits": 2.0}
    fitted = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    (folder / "fit.json").write_text(json.dumps({**fitted, "critical_tokens": [verdict, found, other, *two]}))
    options = ("--fit", folder, "--serve-bits", "2,3", "-o", tmp_path / "plan")
    for N, known in (("120k", {2: True, 3: False}), ("350k", {2: True, 3: True})):
        assert ptq_eval("plan", "--params", N, *options).code == 0
        turns = asked(plan_of(tmp_path / "plan"), "critical_tokens")
        assert {answer["at"]["bits"]: bool(answer["values"]) for answer in turns} == known
        assert all("size100000 says: at 3 bits delta" in a["why_not"] for a in turns if not a["values"])


@pytest.mark.slow
def test_plan_needs_no_torch(tmp_path):
    script = "import atexit; atexit.register(lambda: print([n for n in ('torch', 'transformers') if n in sys.modules]))"
    process = start("plan", "--params", "1B", "-o", str(tmp_path), before=f"import sys\n{script}")
    said, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert re.search(r"^\[\]$", said, re.MULTILINE)
