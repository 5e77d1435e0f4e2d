"""Contract, oracle and recovery: several conditions of calibration are compared, and never pooled."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import ptq_eval
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OptionError, OutputMismatchError
from ptq_eval.results.calibrations import COLUMNS, compare, effects
from ptq_eval.results.draws import add_calibration
from ptq_eval.results.load import load
from ptq_eval.results.points import Losses, Skipped, read
from ptq_eval.results.store import Store
from ptq_eval.sampling import independent

MANY = {"calib_windows": (4, 2), "calib_length": (32, 16), "calib_seed": (0, 1)}


@pytest.fixture(scope="module")
def options(small):
    return {**small, "quantizers": ("rtn", "awq"), "bits": (3, 4), "write_report": False}


@pytest.fixture(scope="module")
def other_text(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "other.txt"
    lines = Path(texts.calibration).read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(reversed(lines)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def grown(trajectory, options, other_text, tmp_path_factory):
    """A folder measured under one calibration, then under sixteen draws; results and records of both."""
    out = tmp_path_factory.mktemp("calibrations")
    one = ptq_eval.run(trajectory, out, **options)
    before = {m.trial.key(): m for m in Store(out).measurements()}
    calibrated = {**options, **MANY, "calib_text": (options["calib_text"], other_text)}
    many = ptq_eval.run(trajectory, out, **calibrated)
    return out, calibrated, one, before, many


def awq(table, **where):
    rows = table[table["quantizer"] == "awq"]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows


@pytest.mark.slow
def test_what_single_runs_measured_is_not_measured_again(grown):
    out, _, _, before, many = grown
    stored = list(Store(out).measurements())
    now = {m.trial.key(): m for m in stored}
    assert len(now) == len(stored)
    assert {key: now[key].nll for key in before} == {key: m.nll for key, m in before.items()}
    assert [now[key].provenance for key in before] == [m.provenance for m in before.values()]
    cells = 3 * 2  # checkpoints, bits
    assert len(now) - len(before) == cells * (2 * 2 * 2 * 2 - 1)
    assert len(awq(many.table)) == cells * 2 * 2 * 2
    assert (awq(many.table)["calibration_draws"] == 2).all()
    assert not awq(many.table).duplicated(["step", "bits", *COLUMNS]).any()


def test_every_row_says_its_calibration(grown):
    *_, one, _, many = grown
    first = awq(many.table, calib_first=True)
    assert first[list(COLUMNS)].drop_duplicates().values.tolist() == [[one.run["options"]["calib_text"][0], 4, 32]]
    assert set(many.table["calib_seed"].dropna()) == {"0,1"}
    assert many.table.loc[many.table["quantizer"] != "awq", [*COLUMNS, "calib_first"]].isna().all(axis=None)


def test_fits_are_of_the_first_condition_alone(grown, trajectory, options, tmp_path):
    *_, many = grown
    assert {p.key for p in many.points} == set(many.table.loc[many.table["calib_first"] != False, "key"])  # noqa: E712
    alone = ptq_eval.run(trajectory, tmp_path, **options, calib_seed=(0, 1))
    for name in ("records", "fits", "critical_tokens", "cautions"):
        assert many.fit[name] == alone.fit[name]
    assert "calibrations" not in alone.fit


def test_a_table_read_from_a_file_gives_the_same_points(grown):
    *_, many = grown
    rows = json.loads(many.table.to_json(orient="records"))
    found, excluded = read({**row, "calib_first": str(row["calib_first"])} for row in rows)
    assert [p.key for p in found] == [p.key for p in many.points]
    assert excluded[Skipped.OTHER_CALIBRATION] == len(rows) - len(found)


def test_the_first_calibration_stays_the_folder_s(grown, trajectory):
    out, calibrated, *_ = grown
    with pytest.raises(OutputMismatchError, match="calib-windows"):
        ptq_eval.run(trajectory, out, **{**calibrated, "calib_windows": (2, 4)})
    assert len(ptq_eval.load(out).fit["calibrations"]) == 2 * 7


def test_a_later_call_may_ask_for_fewer(grown, trajectory, options):
    out, _, _, _, many = grown
    fewer = ptq_eval.run(trajectory, out, **options)
    assert fewer.table["key"].tolist() == many.table["key"].tolist()
    assert fewer.fit["calibrations"] == many.fit["calibrations"]


def test_a_changed_text_of_another_condition_is_refused(trajectory, options, tmp_path, other_text):
    text = tmp_path / "text.txt"
    words = Path(other_text).read_text(encoding="utf-8")
    text.write_text(words, encoding="utf-8")
    asked = {**options, "bits": (3,), "calib_text": (options["calib_text"], text)}
    ptq_eval.run(trajectory, tmp_path / "out", **asked)
    text.write_text("Another beginning. " + words, encoding="utf-8")
    with pytest.raises(OutputMismatchError, match=r"calibration: .*text.txt"):
        ptq_eval.run(trajectory, tmp_path / "out", **asked)


def test_differences_are_paired_by_window_and_hold_the_draws(grown):
    out, *_, many = grown
    results = load(out)
    table = awq(many.table).set_index("key").to_dict("index")
    for key, row in table.items():
        if row["calib_first"]:
            assert math.isnan(row["calib_difference"])
            continue
        (first,) = [
            k for k, r in table.items() if r["calib_first"] and (r["step"], r["bits"]) == (row["step"], row["bits"])
        ]
        change = results.windows[key].after - results.windows[first].after
        pairs = change.reshape(-1, 2)
        population = next(m for m in Store(out).measurements()).trial.sample.population
        sampling = (1 - len(change) / population) * ((pairs[:, 0] - pairs[:, 1]) ** 2).sum() / len(change) ** 2
        drawn = row["calibration_se"] ** 2 + table[first]["calibration_se"] ** 2
        assert row["calib_difference"] == pytest.approx(change.mean())
        assert row["calib_difference_se"] == pytest.approx(math.sqrt(sampling + drawn), rel=1e-6)


def test_folders_of_earlier_versions_have_one_condition(grown, trajectory, options, tmp_path):
    """Their records do not say where calibration windows come from, and their texts not how long windows are."""
    now = ptq_eval.run(trajectory, tmp_path, **options).table
    for path in tmp_path.rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["trial"].pop("calibration_draw", None)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((tmp_path / "run.json").read_text())
    for texts in info["texts"].values():
        texts["calibration"].pop("length")
    info["options"] |= {"calib_text": options["calib_text"], "calib_windows": 4, "calib_seed": 0}
    info["fixed"].pop("calib_length")
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert not any(m.trial.calibration_draw for m in Store(tmp_path).measurements())
    names = [*COLUMNS, "calib_seed", "calib_first", "delta", "key"]
    assert ptq_eval.load(tmp_path).table[names].equals(now[names])
    again = ptq_eval.run(trajectory, tmp_path, **options, calib_seed=(0, 1)).table
    assert set(awq(again)["calib_seed"]) == {"0,1"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calib_seed": (0, 1), "calib_repeats": 2}, "calib-repeats counts seeds"),
        ({"calib_seed": (0, 1), "calib_sample": "first"}, "calib-seed needs windows that are drawn"),
        ({"calib_windows": ()}, "calib-windows needs a value"),
        ({"calib_text": ","}, "an entry of --calib-text is empty"),
        ({"calib_length": "1"}, "calib-length is too small"),
    ],
)
def test_wrong_lists_are_refused(changes, words):
    with pytest.raises(OptionError, match=words):
        RunConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calib_windows": (10**6, 2 * 10**6)}, "are the same windows"),
        ({"calib_length": 10**6}, "--calib-length is longer than the model's context"),
    ],
)
def test_lists_that_do_not_fit_text_or_model_are_refused_before_measuring(
    trajectory, options, tmp_path, changes, words
):
    with pytest.raises(OptionError, match=words):
        ptq_eval.run(trajectory, tmp_path / "out", **{**options, **changes})
    assert not (tmp_path / "out").exists()


def simulated(rng, checkpoints=4, windows=24, draws=3, effect=0.0):
    """Rows and losses of two conditions: each draw moves delta of a cell, each window has noise of its own."""
    rows, losses = [], {}
    for bits in (2, 3, 4, 8):
        shared = rng.normal(0, 1, windows)  # how windows react to the other condition, whatever the checkpoint
        for step in range(checkpoints):
            scale = math.exp(rng.normal(0, 0.3)) * 2.0**-bits
            for other in (False, True):
                drawn = scale * rng.normal(0, 0.5, draws)
                noise = scale * (rng.normal(0, 0.5, windows) + shared * other)
                after = noise + drawn.mean() + effect * other
                key = f"{bits} {step} {other}"
                losses[key] = Losses(after, np.zeros(windows), independent(windows))
                rows.append(
                    {"run": "run", "step": step, "bits": bits, "quantizer": "q", "key": key, "delta": after.mean(),
                     "delta_se": 0.1, "loss_q_se": 0.1, "delta_df": windows - 1, "kl": scale**2,
                     "calibration_draws": draws, "calibration_sd": float(np.std(drawn, ddof=1)), "calib_text": "text",
                     "calib_windows": 8 if other else 4, "calib_length": 16, "calib_first": not other}
                )  # fmt: skip
    add_calibration(rows)
    for row in rows:
        losses[row["key"]] = losses[row["key"]]._replace(calibration_se=row["calibration_se"])
    return rows, losses


@pytest.mark.slow
def test_recovery_one_difference_in_twenty_is_significant_where_nothing_changes():
    """The limit is two standard errors, 4.6 %; one checkpoint alone, and the mean over four."""
    from ptq_eval.sampling import errors_needed

    rng, single, means = np.random.default_rng(0), [], []
    for _ in range(300):
        rows, losses = simulated(rng)
        compare(rows, losses)
        found = [row for row in rows if "calib_difference" in row]
        single += [
            abs(row["calib_difference"]) > errors_needed(row["calib_difference_df"]) * row["calib_difference_se"]
            for row in found
        ]
        means += [abs(one["difference"]) > errors_needed(one["df"]) * one["error"] for one in effects(rows, losses)]
    assert len(means) == 300 * 4
    assert 0.03 <= np.mean(single) <= 0.065
    assert 0.03 <= np.mean(means) <= 0.065


def test_effects_are_means_over_the_checkpoints_of_a_trajectory():
    rows, losses = simulated(np.random.default_rng(1), effect=0.5)
    (two, *_) = effects(rows, losses, {"run": "all runs"})
    own = [row for row in rows if row["bits"] == 2]
    before, after = ([row["delta"] for row in own if row["calib_first"] is first] for first in (True, False))
    assert two["trajectory"] == "all runs"
    assert two["checkpoints"] == 4
    assert two["delta_first"] == pytest.approx(np.mean(before))
    assert two["difference"] == pytest.approx(np.mean(after) - np.mean(before))
    assert two["first"]["calib_windows"] == 4
    assert two["calib_windows"] == 8
    assert two["draw_sd"] == pytest.approx(
        math.sqrt(np.mean([row["calibration_sd"] ** 2 for row in own if not row["calib_first"]]))
    )
    assert two["covers_calibration"]
    json.dumps(two)


@pytest.mark.slow
def test_the_page_is_written_again_with_its_comparison(grown):
    from ptq_eval.report import renew_page

    out, *_, many = grown
    ptq_eval.save_report(out, many)
    before = (out / "report.md").read_text()
    assert renew_page(load(out)) == [out / "report.md", out / "report.html"]
    sections = [
        text.split("## Other calibrations")[1].split("\n## ")[0] for text in (before, (out / "report.md").read_text())
    ]
    assert sections[0] == sections[1]
    assert sections[0].count("\n| awq") == 2 * 7


def test_jobs_of_one_calibration_refuse_several(trajectory, options, tmp_path):
    from ptq_eval import export, sensitivity

    asked = {name: value for name, value in options.items() if name != "write_report"} | {"calib_windows": (4, 2)}
    with pytest.raises(OptionError, match="several values of calib_windows"):
        sensitivity(trajectory, tmp_path / "out", steps="last", **asked)
    with pytest.raises(OptionError, match="one draw of calibration windows"):
        export(trajectory / "checkpoint-100", tmp_path / "out", **{**asked, "quantizers": "awq", "bits": 4})
