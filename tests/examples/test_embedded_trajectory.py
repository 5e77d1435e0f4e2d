"""Golden: the trajectory that is shipped is what it says it is, and gives the numbers that were published with it."""

import json
from pathlib import Path

import pandas as pd
import pytest

import ptq_eval
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.corpora.stdlib import modules, part_of

ROOT = Path(__file__).resolve().parents[2]
TRAJECTORY = ROOT / "examples" / "trajectory"
PUBLISHED = ROOT / "results" / "embedded"


@pytest.fixture(scope="module")
def checkpoints():
    return verify_all(discover([TRAJECTORY]))


def test_size_on_disk():
    assert sum(path.stat().st_size for path in TRAJECTORY.rglob("*") if path.is_file()) <= 16e6


def test_two_sizes_with_enough_checkpoints_over_the_promised_range(checkpoints):
    runs = {c.run: [d for d in checkpoints if d.run == c.run] for c in checkpoints}
    assert len(runs) == 2
    assert len({c.params for c in checkpoints}) == 2
    for own in runs.values():
        ratios = [c.tokens_per_param for c in own]
        assert len(own) >= 8
        assert ratios == sorted(ratios)
        assert ratios[0] == pytest.approx(5, rel=0.02)
        assert ratios[-1] >= 300


def test_nothing_is_wrong_with_it_and_every_count_is_explicit(checkpoints):
    assert [c.problems for c in checkpoints if c.problems] == []
    assert {c.tokens_source for c in checkpoints} == {"explicit"}
    assert {c.schedule_phase for c in checkpoints} == {"constant"}
    assert len({c.tokenizer_sha for c in checkpoints}) == 1


def test_how_it_was_trained_is_written_down(checkpoints):
    for run in {c.run for c in checkpoints}:
        about = json.loads((TRAJECTORY / run / "pretrain.json").read_text())
        own = [c for c in checkpoints if c.run == run]
        assert about["params_non_embedding"] == own[0].params
        assert about["params_total"] == own[0].params_total
        assert [s * about["tokens_per_step"] for s in about["steps_saved"]] == [c.tokens for c in own]
        assert len(about["text_digest"]) == 64
        assert isinstance(about["config"]["seed"], int)
        log = [json.loads(line) for line in (TRAJECTORY / run / "log.jsonl").read_text().splitlines()]
        assert log[-1]["step"] <= own[-1].step
        assert log[0]["loss"] > log[-1]["loss"]


def test_no_module_is_in_two_parts():
    parts = {name: part_of(name) for name, _ in modules()}
    assert set(parts.values()) == {"train", "calibration", "evaluation"}
    counts = pd.Series(parts).value_counts()
    assert counts["train"] > 3 * (counts["calibration"] + counts["evaluation"])


def test_the_published_numbers_come_out_again(tmp_path):
    published = pd.read_csv(PUBLISHED / "degradation.csv")
    run = json.loads((PUBLISHED / "run.json").read_text())
    expected = {text["evaluation"]["text_digest"] for text in run["texts"].values()}
    rows = published[(published["quantizer"] == "rtn") & (published["bits"] == 2)].groupby("run").nth(4)
    options = run["options"]
    for _, row in rows.iterrows():
        result = ptq_eval.run(
            TRAJECTORY / row["run"] / f"checkpoint-{row['step']}",
            tmp_path / row["run"],
            quantizers=("rtn",),
            bits=(2,),
            group_size=options["group_size"],
            eval_windows=options["eval_windows"],
            eval_sample=options.get("eval_sample", "first"),
            bootstrap=20,
            write_report=False,
        )
        again = result.table[result.table["quantizer"] == "rtn"].iloc[0]
        measured_on = {text["evaluation"]["text_digest"] for text in result.run["texts"].values()}
        # Another Python has another standard library: the effect must be there, the digits only on the same text.
        tolerance = 1e-4 if measured_on == expected else 0.25 * row["delta"]
        assert again["delta"] == pytest.approx(row["delta"], abs=tolerance)


def test_the_published_report_claims_a_turn_only_where_the_test_does():
    critical = json.loads((PUBLISHED / "fit.json").read_text())["critical_tokens"]
    assert len(critical) == 24
    for c in critical:
        assert (c["verdict_kind"] == "observed") == c["interior"]
        assert not c["interior"] or c["adjusted_p"] <= 0.05
        assert c["answer"]["low"] > 0
    at_2_bits = [c for c in critical if c["bits"] == 2]
    assert len(at_2_bits) == 6
    for c in at_2_bits:
        assert c["rise"] > 2 * c["rise_se"]
        assert c["observed_tokens"] < c["largest_tokens"]
        assert 0 < c["p_value"] <= c["adjusted_p"] < 1
