"""Contract: the degradation table, in Python and as a file, and what each number in it is."""

import math
import shutil
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

import ptq_eval
from ptq_eval.results.store import Store

NAMED = (
    *("run", "step", "tokens", "params", "tokens_per_param", "quantizer", "bits", "group_size", "symmetric"),
    *("calibration", "loss_fp", "loss_q", "delta", "delta_se", "ppl_fp", "ppl_q", "kl", "top1_agreement"),
    *("bits_per_weight", "windows", "protocol", "status"),
)
WINDOWS = 8


@pytest.fixture(scope="module")
def root(trajectory, tmp_path_factory):
    """The trajectory with a fourth checkpoint, whose weights are those of the third."""
    root = shutil.copytree(trajectory, tmp_path_factory.mktemp("table") / "small")
    shutil.copytree(root / "checkpoint-400", root / "checkpoint-800")
    state = root / "checkpoint-800" / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8").replace("400", "800"), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(root, out, small):
    options = {**small, "quantizers": ("rtn", "gptq", "awq"), "eval_windows": WINDOWS}
    return ptq_eval.run(root, out, **options)


@pytest.fixture(scope="module")
def table(result):
    return result.table


@pytest.mark.slow
def test_a_result_holds_the_table_the_fit_and_the_run(result):
    assert isinstance(result, ptq_eval.RunResult)
    assert type(result.table) is pd.DataFrame
    assert {"fits", "critical_tokens", "warnings"} <= result.fit.keys()
    assert {fit["quantizer"] for fit in result.fit["fits"]} >= {"rtn", "gptq", "awq"}
    assert result.run["options"]["bits"] == (3, 4)


def test_the_file_has_the_named_columns_and_a_row_per_checkpoint_quantizer_and_bits(table, out):
    written = pd.read_csv(out / "degradation.csv")
    assert list(written.columns[: len(NAMED)]) == list(NAMED)
    assert list(written.columns) == list(table.columns)
    assert len(written) == len(table) == 3 * (1 + 3 * 2) + 1
    for name in ("delta", "delta_se", "loss_fp", "kl"):
        assert np.array_equal(written[name], table[name], equal_nan=True), "the file does not hold every digit"


def test_rows_follow_the_trajectory(table):
    assert table["step"].tolist() == [100] * 7 + [200] * 7 + [400] * 7 + [800]
    order = [("none", None), *((q, b) for q in ("awq", "gptq", "rtn") for b in (3, 4))]
    for step in (100, 200, 400):
        rows = table[table["step"] == step]
        got = [(q, None if math.isnan(b) else b) for q, b in zip(rows["quantizer"], rows["bits"])]
        assert sorted(got, key=str) == sorted(order, key=str)
        assert got[0] == ("none", None)


def test_an_excluded_checkpoint_is_a_row_with_its_reason(result, table):
    row = table.iloc[-1]
    assert (row["status"], row["step"], row["windows"]) == ("excluded", 800, 0)
    assert "the same weights as small@400" in row["message"]
    assert math.isnan(row["delta"])
    (problem,) = result.problems
    assert "the same weights as small@400" in str(problem)


def test_every_number_is_what_its_records_say(table, out):
    records = {m.trial.key(): m for m in Store(out).measurements()}
    full = {m.trial.checkpoint.step: m for m in records.values() if m.trial.quantizer == "none"}
    population = Store(out).require()["texts"]["small"]["evaluation"]["available"]
    for _, row in table[table["status"] == "ok"].iterrows():
        m, reference = records[row["key"]], full[row["step"]]
        n = sum(m.n_tokens)
        assert row["tokens"] == row["step"] * 1000
        assert row["tokens_per_param"] == row["tokens"] / row["params"]
        assert row["loss_fp"] == pytest.approx(sum(reference.nll) / n)
        assert row["ppl_fp"] == pytest.approx(math.exp(row["loss_fp"]))
        assert row["windows"] == WINDOWS
        assert n == WINDOWS * 31
        assert row["protocol"] == m.trial.protocol
        if row["quantizer"] == "none":
            assert math.isnan(row["delta"])
            continue
        assert row["loss_q"] == pytest.approx(sum(m.nll) / n)
        assert row["ppl_q"] == pytest.approx(math.exp(row["loss_q"]))
        assert row["delta"] == pytest.approx(row["loss_q"] - row["loss_fp"], abs=1e-12)
        paired = (np.array(m.nll) - np.array(reference.nll)) / 31
        pairs = paired.reshape(-1, 2)
        error = math.sqrt((1 - WINDOWS / population) * ((pairs[:, 0] - pairs[:, 1]) ** 2).sum()) / WINDOWS
        assert row["delta_se"] == pytest.approx(error)
        assert (row["delta_df"], row["covers"]) == (WINDOWS // 2, "text")
        assert row["effective_windows"] == pytest.approx(paired.var(ddof=1) / error**2)
        second = reference.details["second_order"] * sum(m.kl) / n
        assert second > 0
        parts = math.hypot(m.details["rounding"], second), reference.details["numerics"]
        assert (row["rounding_sd"], row["numerics_sd"]) == pytest.approx(parts)
        assert row["noise_floor"] == pytest.approx(2 * math.sqrt(parts[0] ** 2 + parts[1] ** 2))
        assert row["kl"] == pytest.approx(sum(m.kl) / n)
        assert row["top1_agreement"] == sum(m.agree) / n
        assert (row["bits"], row["group_size"], row["symmetric"]) == (m.trial.bits, 16, False)
        assert row["bits_per_weight"] == m.bits_per_weight > row["bits"]
    modes = table.groupby("quantizer")["calibration"].unique().map(list).to_dict()
    assert modes == {"none": [""], "rtn": ["none"], "gptq": ["sequential"], "awq": ["shared"]}


def test_what_a_method_loses_over_rounding_has_the_error_of_the_same_windows(table, out):
    records = {m.trial.key(): m for m in Store(out).measurements()}
    rows = table[table["status"] == "ok"]
    rounding = rows[rows["quantizer"] == "rtn"].set_index(["step", "bits"])
    assert rows.loc[rows["quantizer"].isin(["rtn", "none"]), "over_rounding"].isna().all()
    others = rows[rows["quantizer"].isin(["gptq", "awq"])]
    assert len(others) == 12
    for _, row in others.iterrows():
        other = rounding.loc[(row["step"], row["bits"])]
        paired = (np.array(records[row["key"]].nll) - np.array(records[other["key"]].nll)) / 31
        assert row["over_rounding"] == pytest.approx(row["delta"] - other["delta"], abs=1e-12)
        gaps = np.diff(paired.reshape(-1, 2), axis=1)
        population = records[row["key"]].trial.sample.population
        assert row["over_rounding_se"] == pytest.approx(
            math.sqrt((1 - WINDOWS / population) * (gaps**2).sum()) / WINDOWS
        )


def test_methods_and_bits_are_ordered_as_they_must_be(table):
    """More bits lose less, at every checkpoint, in KL from full precision."""
    pivot = table[table["status"] == "ok"].pivot_table(index=["step", "quantizer"], columns="bits", values="kl")
    assert (pivot[3] > pivot[4]).all()


def test_run_json_names_everything_that_was_done(table, out):
    info = Store(out).require()
    assert info["options"]["seq_len"] == 32
    assert info["versions"].keys() >= {"python", "torch", "transformers", "tokenizers", "ptq-eval"}
    for package in ("numba", "triton"):  # kernels may change codes in ties
        assert (package in info["versions"]) is (find_spec(package) is not None)
    assert info["digests"]["small"].keys() == {"evaluation", "calibration"}
    assert info["models"]["small"]["group_size"] == 16
    assert len(info["checkpoints"]) == 4
    assert info["plugins"]["rtn"].startswith("ptq-eval ")
    assert info["machine"]["cores"] >= 1


def test_loading_gives_the_same_table_and_fit(result, out):
    again = ptq_eval.load(out, bootstrap=10)
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    assert again.fit == result.fit


def test_an_unknown_option_is_named_with_the_nearest_one(tmp_path):
    from ptq_eval.errors import OptionError

    with pytest.raises(OptionError, match=r"got group_sise .* did you mean 'group_size'"):
        ptq_eval.run(tmp_path, tmp_path / "out", group_sise=16)


def test_corrections_of_the_trajectory_go_by_the_names_of_the_command_line(tmp_path):
    from ptq_eval.errors import EmptyFolderError

    with pytest.raises(EmptyFolderError):  # understood, and only then the folder is found empty
        ptq_eval.run(tmp_path, tmp_path / "out", tokens_per_step=2048, exclude=(3,))
