"""Contract: `ptq-eval sensitivity` and what it writes, on a shipped checkpoint; one line for every wrong request."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from ptq_eval.cli.main import main
from ptq_eval.config.run import RunConfig
from ptq_eval.jobs import sensitivity as job
from ptq_eval.report.common.files import plain

ROOT = Path(__file__).resolve().parents[2]
TRAJECTORY = ROOT / "examples" / "trajectory" / "llama-40k"
FEW = (
    "--bits",
    "3,8",
    "--formats",
    "nvfp4",
    "--eval-windows",
    "12",
    "--calib-windows",
    "12",
    "--steps",
    "last",
    "--device",
    "cpu",
)


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ptq-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return left.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory, whole_pictures):
    """A record of one checkpoint under two widths and one other format, made once."""
    whole_pictures.update(("png", "pdf"))
    out = tmp_path_factory.mktemp("theory") / "out"
    record, problems = job.sensitivity(
        TRAJECTORY, out, steps="last", bits=(3, 8), formats="nvfp4", eval_windows=12, calib_windows=12, device="cpu"
    )
    assert problems == []
    return out, record


@pytest.mark.slow
def test_files_and_columns(made):
    out, record = made
    assert json.loads((out / "sensitivity.json").read_text())["checkpoints"][0]["run"] == "llama-40k"
    table = pd.read_csv(out / "sensitivity.csv")
    assert len(table) == 3 * (21 + 1)
    assert table.groupby("quantizer")["bits"].unique().map(list).to_dict() == {"rtn": [3, 8], "rtn nvfp4": [4]}
    assert set(table["format"].dropna()) == {"nvfp4"}
    numbers = table.drop(columns=["run", "quantizer", "layer", "format"])
    assert numbers.notna().all(axis=None)
    assert {"predicted", "predicted_se", "delta", "delta_se", "kl", "kl_se", "kfac", "spread"} <= set(numbers)
    for kind in ("png", "pdf", "csv"):
        assert (out / "figures" / f"sensitivity_rtn.{kind}").stat().st_size > 1000
    entry = record["checkpoints"][0]
    assert {"time", "torch", "machine", "seconds"} <= set(entry["provenance"])
    assert entry["texts"]["evaluation"]["windows"] == 12
    assert record["settings"]["seed"] == 0


def test_the_bound_over_widths_is_that_of_integers(made):
    out, record = made
    assert {one["quantizer"] for one in record["checkpoints"][0]["bounds"]} == {"rtn"}
    assert not (out / "figures" / "sensitivity_rtn nvfp4.png").exists()
    assert "| llama-40k@19609 | rtn nvfp4, 4 bits |" in (out / "sensitivity.md").read_text()


def test_options_that_change_nothing_are_not_recorded(made):
    settings = made[1]["settings"]
    assert settings["formats"] == ["nvfp4"]
    assert "bits_axis" not in settings
    plain_one = job._header(RunConfig(quantizers=("rtn",)), 2)["settings"]
    assert not {"formats", "bits_axis", "bos"} & set(plain_one)  # records of earlier versions stay valid


def test_every_column_is_explained(made):
    explained = (ROOT / "docs" / "theory.md").read_text()
    for column in pd.read_csv(made[0] / "sensitivity.csv"):
        assert f"`{column}`" in explained


def test_prediction_meets_measurement(made):
    """With a dozen windows: KL within a factor of 1.5 of what the noise model says, layers in the same order."""
    _, record = made
    for found in record["checkpoints"][0]["agreement"]:
        if (found["prediction"], found["measured"]) == ("predicted", "kl"):
            assert found["pearson_log"] > 0.95
            assert found["spearman"] > 0.95
            assert 1 / 1.5 < found["ratio"] < 1.5
        if (found["prediction"], found["measured"]) == ("output_error", "kl"):
            assert found["pearson_log"] < 0.6


@pytest.mark.slow
def test_the_command_prints_and_goes_on_where_it_was(made, call, monkeypatch):
    out, record = made
    monkeypatch.setattr(job, "rows", lambda *_, **__: pytest.fail("measured again"))
    code, said, err = call("sensitivity", TRAJECTORY, "-o", out, *FEW)
    assert (code, err) == (0, "")
    assert "llama-40k@19609" in said
    assert "sensitivity.md" in said
    again = json.loads((out / "sensitivity.json").read_text())
    assert again["checkpoints"] == json.loads(json.dumps(plain(record["checkpoints"])))  # unknown is null in the file


def test_other_settings_are_measured_anew(made, tmp_path, monkeypatch):
    out, _ = made
    (tmp_path / "sensitivity.json").write_text((out / "sensitivity.json").read_text())
    monkeypatch.setattr(job, "rows", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        job.sensitivity(
            TRAJECTORY, tmp_path, steps="last", bits=(3, 8), eval_windows=12, calib_windows=12, device="cpu", seed=1
        )


@pytest.mark.slow
def test_the_report_of_a_run_includes_it(call, tmp_path):
    few = ("--eval-windows", "4", "--calib-windows", "4", "--bits", "3", "--device", "cpu")
    steps = [int(folder.name.split("-")[1]) for folder in TRAJECTORY.glob("checkpoint-*")]
    excluded = ",".join(str(step) for step in sorted(steps)[2:])
    common = (TRAJECTORY, "-o", tmp_path / "out", *few, "--exclude", excluded)
    code, *_ = call("run", *common, "--quantizers", "rtn", "--bootstrap", "10")
    assert code == 0
    assert "From theory" not in (tmp_path / "out" / "report.md").read_text()
    fit = (tmp_path / "out" / "fit.json").read_text()
    code, said, _ = call("sensitivity", *common, "--steps", "first")
    assert code == 0
    assert "report.md" in said
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## From theory: which layers carry the damage" in text
    assert "figures/sensitivity_rtn.png" in text
    assert (tmp_path / "out" / "fit.json").read_text() == fit


@pytest.mark.slow
def test_how_many_variants_fit_changes_no_result(made, tmp_path, monkeypatch):
    """With memory for one variant at a time every number of the record is the same."""
    sizes = []
    whole = job.rows
    monkeypatch.setattr(job, "rows", lambda *args, **options: sizes.append(len(args[3])) or whole(*args, **options))
    record, _ = job.sensitivity(
        TRAJECTORY,
        tmp_path,
        steps="last",
        bits=(3, 8),
        formats="nvfp4",
        eval_windows=12,
        calib_windows=12,
        device="cpu",
        memory=1000,
    )
    assert sizes == [1, 1, 1]
    assert record["checkpoints"][0]["rows"] == made[1]["checkpoints"][0]["rows"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--steps", "7"), 2, "--steps names no checkpoint"),
        (("--steps", ""), 2, "--steps names no checkpoint"),
        (("--draws", "0"), 2, "--draws is too small"),
        (("--bits", "9"), 19, "--bits is too large"),
        (("--bits", "two"), 19, "--bits is not a whole number"),
        (("--quantizers", "rtm"), 20, "did you mean 'rtn'"),
        (("--group-size", "4096", "--steps", "first"), 18, "--group-size is larger than a row"),
        (("--seq-len", "4096", "--steps", "first"), 2, "--seq-len is longer"),
        (("--eval-windows", "1"), 2, "--eval-windows is too small"),
    ],
)
def test_wrong_requests_are_one_line(call, tmp_path, arguments, code, said):
    left, _, err = call("sensitivity", TRAJECTORY, "-o", tmp_path / "out", *arguments)
    assert left == code, err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_and_a_damaged_record_are_one_line(call, tmp_path):
    left, _, err = call("sensitivity", tmp_path / "nothing", "-o", tmp_path / "out")
    assert (left, len(err.splitlines())) == (10, 1)
    (tmp_path / "sensitivity.json").write_text('{"checkpoints": [')
    left, _, err = call("sensitivity", TRAJECTORY, "-o", tmp_path, *FEW)
    assert (left, len(err.splitlines())) == (21, 1)
    assert "sensitivity.json of the output folder is damaged" in err


def test_types_and_shards_that_make_no_sense(tmp_path):
    for wrong in ({"dtype": "bfloat16"}, {"shard": (1, 2)}, {"precision": 0.1}):
        with pytest.raises(job.OptionError):
            job.sensitivity(TRAJECTORY, tmp_path, **wrong)


@pytest.mark.slow
def test_a_quantizer_that_fails_is_named_and_has_no_rows(call, tmp_path):
    """A model that was never made is no model without damage."""
    few = ("--eval-windows", "4", "--calib-windows", "4", "--steps", "last", "--device", "cpu")
    arguments = ("sensitivity", TRAJECTORY, "-o", tmp_path, *few, "--formats", "mxfp4", "--bits", "3")
    code, said, err = call(*arguments, "--quantizers", "rtn,hqq")
    assert code == 28
    assert "hqq mxfp4, 4 bits: hqq is not defined for format mxfp4" in err
    (entry,) = json.loads((tmp_path / "sensitivity.json").read_text())["checkpoints"]
    assert {(row["quantizer"], row["bits"]) for row in entry["rows"]} == {("rtn", 3), ("rtn mxfp4", 4), ("hqq", 3)}
    assert "rtn mxfp4" in said
    again, *_ = call(*arguments, "--quantizers", "rtn,hqq")
    assert again == 28
    assert len(json.loads((tmp_path / "sensitivity.json").read_text())["checkpoints"]) == 1


def test_a_study_without_any_model_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setenv("PTQ_EVAL_BACKENDS", str(tmp_path / "none"))
    code, _, err = call(
        "sensitivity", TRAJECTORY, "-o", tmp_path / "out", *FEW[:2], "--quantizers", "llmcompressor:gptq"
    )
    assert code == 54
    assert "ptq-eval backends install llmcompressor" in err
    assert not (tmp_path / "out").exists()
