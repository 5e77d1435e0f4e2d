"""Contract: whatever a backend does, its records say what went wrong and the rest of the grid is measured."""

import json

import numpy as np
import pytest
from safetensors import SafetensorError

import ptq_eval
from ptq_eval.errors import UnknownPluginError
from ptq_eval.records import Measurement

METHODS = ("good", "nan", "shape", "unchanged", "partial", "raises", "killed", "missing", "more", "undecodable")
REASONS = {
    "nan": "not finite",
    "shape": "other shapes",
    "unchanged": "the backend left it unchanged",
    "raises": "ValueError: cannot do this",
    "killed": "killed by SIGKILL, as the system does when memory runs out: about to die",
    "missing": "no weights of 1 layers",
    "more": "layers that are not to be quantized: lm_head",
    "undecodable": "FileNotFoundError: no file \\udcff",
}


def by_method(result):
    rows = result.table[result.table["bits"].notna()]
    return {name: rows[rows["quantizer"] == name].iloc[0] for name in rows["quantizer"]}


@pytest.fixture
def one(saved):
    return saved("llama")


@pytest.mark.slow
def test_each_failure_is_a_record_and_the_grid_goes_on(fakes, measure, one, home):
    names = ("rtn", *(f"fake:{method}" for method in METHODS), "broken", "absent", "elsewhere")
    found = by_method(measure(one, quantizers=names, bits=(4,)))
    assert found["rtn"]["status"] == found["fake:good"]["status"] == "ok"
    assert found["fake:good"]["delta"] == pytest.approx(found["rtn"]["delta"], abs=1e-7)
    for method, reason in REASONS.items():
        row = found[f"fake:{method}"]
        assert row["status"] == "failed"
        assert reason in row["message"], row["message"]
    assert found["fake:partial"]["status"] == "partial"
    assert found["fake:partial"]["layers_skipped"] == 1
    assert "libmissing.so" in found["broken:rtn"]["message"]
    assert "ptq-eval backends install absent" in found["absent:rtn"]["message"]
    assert "needs CUDA" in found["elsewhere:rtn"]["message"]
    assert "somebody succeeds it" in found["elsewhere:rtn"]["message"]
    assert "about to die" in (home / "logs" / "fake.log").read_text()


def test_a_disk_too_full_for_the_exchange_fails_the_backend_alone(fakes, measure, one, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ptq_eval.measure.foreign.handover.save_file", full)
    found = by_method(measure(one, quantizers=("rtn", "fake:good"), bits=(4,)))
    assert found["rtn"]["status"] == "ok"
    assert found["fake:good"]["status"] == "failed"
    assert "No space left on device" in found["fake:good"]["message"]


def test_weights_that_cannot_be_read_fail_their_method(fakes, measure, one, monkeypatch):
    """The first answer's file is damaged; the answers after it are not waited for, and say so too."""

    def damaged(_):
        raise SafetensorError("Error while deserializing header: incomplete metadata")

    monkeypatch.setattr("ptq_eval.measure.foreign.handover.load_file", damaged)
    found = by_method(measure(one, quantizers=("rtn", "fake:good", "fake:draws"), bits=(4,)))
    assert found["rtn"]["status"] == "ok"
    for name in ("fake:good", "fake:draws"):
        assert found[name]["status"] == "failed"
        assert "incomplete metadata" in found[name]["message"]


def test_a_scheme_that_a_backend_cannot_do(fakes, measure, one):
    result = measure(one, quantizers=("fake:good",), bits=(2, 4), formats=("mxfp4",))
    rows = {(row["bits"], row["format"]): row for _, row in result.table.iterrows() if row["bits"] == row["bits"]}
    assert rows[4, "int"]["status"] == "ok"
    assert rows[2, "int"]["message"] == "fake:good has no 2 bits, only 3, 4"
    assert rows[4, "mxfp4"]["message"] == "fake:good has no format mxfp4"


@pytest.mark.slow
def test_a_failed_measurement_is_tried_again_and_a_good_one_is_not(fakes, measure, one, home, tmp_path):
    names = ("fake:good", "fake:raises")
    measure(one, quantizers=names, bits=(4,))
    again = measure(one, quantizers=names, bits=(4,))
    lines = [line for path in (tmp_path / "out").rglob("*.jsonl") for line in path.read_text().splitlines()]
    records = [Measurement.from_dict(json.loads(line)) for line in lines]
    count = {name: sum(record.trial.quantizer == name for record in records) for name in names}
    assert count == {"fake:good": 1, "fake:raises": 2}
    assert by_method(again)["fake:good"]["status"] == "ok"


@pytest.mark.slow
def test_norms_that_a_method_changes_are_measured_too(fakes, measure, one):
    """Folding is exact in full precision: only the rounded layers do damage, as in rtn without the folded ones."""
    found = by_method(measure(one, quantizers=("rtn", "folds:fold", "folds:scaled"), bits=(4,)))
    assert found["folds:fold"]["status"] == "ok", found["folds:fold"]["message"]
    assert 0 < found["folds:fold"]["kl"] < found["rtn"]["kl"]
    assert found["folds:scaled"]["kl"] > 2 * found["rtn"]["kl"]
    record = found["folds:fold"]
    assert np.isfinite(record["noise_floor"])


def test_unknown_names(fakes, trajectory, small, tmp_path):
    for name, near in (("hqg", "hqq"), ("fake:goof", "fake:good"), ("hqq:x", "hqq:hqq"), ("bitsandbyte:nf4", "bits")):
        with pytest.raises(UnknownPluginError, match=near):
            ptq_eval.run(trajectory, tmp_path / "out", **{**small, "quantizers": (name,)})
