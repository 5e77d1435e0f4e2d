"""Contract: records of several quantizer versions, and of other options, in one output folder."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

import ptq_eval
from ptq_eval.errors import OutputMismatchError
from ptq_eval.records import Checkpoint, Measurement, Scheme, Trial
from ptq_eval.results.selection import select
from ptq_eval.results.store import Store
from ptq_eval.results.table import COLUMNS, tabulate
from quantizers.gptq import GPTQ

CHECKPOINT = Checkpoint("run", 1, 1000, 10, weights_sha="w")
FULL = Trial(CHECKPOINT, "digest", "protocol")
RTN = replace(FULL, quantizer="rtn", quantizer_version="2", scheme=Scheme(3))


def measured(trial, nll):
    n = len(nll)
    return Measurement(trial, tuple(nll), (10,) * n, (30,) * n, (1.0,) * n, (5,) * n)


def add_version(out, version, quantizer="gptq", step=None):
    """Add to a store, of every record of a quantizer, one of another version with other losses."""
    for path in sorted((out / "records").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in [x for x in lines if x["trial"]["quantizer"] == quantizer]:
            if step is None or line["trial"]["checkpoint"]["step"] == step:
                trial = {**line["trial"], "quantizer_version": version}
                line = {**line, "trial": trial, "nll": [2 * value for value in line["nll"]]}
                with path.open("a", encoding="utf-8") as handle:
                    handle.write(json.dumps(line) + "\n")


@pytest.fixture
def out(complete, tmp_path):
    return shutil.copytree(complete[0], tmp_path / "out")


def test_older_versions_are_set_aside_and_counted(complete, out):
    add_version(out, "1")
    result = ptq_eval.load(out, bootstrap=10)
    pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)
    (note,) = [w for w in result.fit["warnings"] if "superseded" in w]
    assert note.startswith("6 records superseded by a newer version of the quantizer")
    assert note.endswith("6 of gptq version 1")


def test_the_newest_version_stands_where_it_was_measured_and_the_older_one_elsewhere(complete, out):
    add_version(out, "10", step=200)
    result = ptq_eval.load(out, bootstrap=10)
    table = result.table
    gptq = table[table["quantizer"] == "gptq"]
    assert "quantizer_version" in COLUMNS
    assert len(table) == len(complete[1].table)
    assert gptq.groupby("step")["quantizer_version"].unique().map(list).to_dict() == {
        100: [GPTQ.version], 200: ["10"], 400: [GPTQ.version]
    }  # fmt: skip
    assert set(table.loc[table["quantizer"] == "none", "quantizer_version"]) == {""}
    beginning = f"gptq: the table mixes rows of versions {GPTQ.version} and 10"
    assert any(warning.startswith(beginning) for warning in result.fit["warnings"])


def test_versions_are_ordered_by_their_numbers():
    for older, newer in (("2", "10"), ("1.9", "1.10"), ("", "1"), ("1", "1.1")):
        trials = [replace(RTN, quantizer_version=version) for version in (newer, older)]
        kept, aside = select([measured(trial, [31.0, 32.0]) for trial in trials], [CHECKPOINT])
        assert [m.trial.quantizer_version for m in (*kept, *aside)] == [newer, older]


def test_a_delta_is_taken_against_the_record_of_the_same_windows():
    other = {"corpus": "other", "protocol": "longer"}
    records = [
        measured(FULL, [30.0, 30.0]),
        measured(replace(FULL, **other), [20.0, 20.0, 20.0]),
        measured(RTN, [31.0, 31.0]),
        measured(replace(RTN, **other), [23.0, 23.0, 23.0]),
        measured(replace(RTN, dtype="float16"), [40.0, 40.0]),
    ]
    frame, _ = tabulate(records, [CHECKPOINT])
    rows = frame[frame["quantizer"] == "rtn"].set_index(["protocol", "dtype"])["delta"]
    assert rows["protocol", "float32"] == pytest.approx(0.1)
    assert rows["longer", "float32"] == pytest.approx(0.3)
    assert pd.isna(rows["protocol", "float16"])


CONTRADICTIONS = [
    ({"eval_windows": 6}, "protocol"),
    ({"calib_windows": 3}, "calibration windows"),
    ({"group_size": 8}, "gptq group size 8"),
    ({"dtype": "bfloat16"}, "dtype bfloat16"),
    ({"include_head": True}, "include head True"),
    ({"precision": 0.5}, "got --precision 0.5 | allowed: without --precision"),
    ({"options": {"gptq": {"act_order": True}}}, "act_order"),
]


@pytest.mark.parametrize(("changes", "words"), CONTRADICTIONS, ids=[words for _, words in CONTRADICTIONS])
def test_records_without_run_json_are_compared_with_the_options(out, trajectory, small, changes, words):
    (out / "run.json").unlink()
    before = [path.read_bytes() for path in (out / "records").iterdir()]
    options = {**small, "quantizers": ("gptq",), **changes}
    with pytest.raises(OutputMismatchError, match="results of other options") as caught:
        ptq_eval.run(trajectory, out, write_report=False, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.read_bytes() for path in (out / "records").iterdir()] == before
    assert not (out / "run.json").exists()


def test_without_run_json_the_same_command_measures_nothing_and_writes_it_again(complete, out, trajectory, small):
    (out / "run.json").unlink()
    result = ptq_eval.run(trajectory, out, write_report=False, **small)
    pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)
    assert len(Store(out).measurements()) == len(result.table)
    assert (out / "run.json").exists()


def test_another_precision_is_refused_in_words(out, trajectory, small):
    with pytest.raises(OutputMismatchError) as caught:
        ptq_eval.run(trajectory, out, write_report=False, precision=0.5, **small)
    assert "got --precision 0.5 | allowed: without --precision" in str(caught.value)
