"""Contract: from --bits and --formats to schemes, records and one law for all formats."""

import math

import pytest

import ptq_eval
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import GroupSizeError, NumberFormatError, OptionError
from ptq_eval.measure.schemes import listing, names, schemes_of
from ptq_eval.records import BITS_AXES
from ptq_eval.results.points import axis_value, digest, format_family, read
from quantizers import Scheme
from tests.support.steps import planned


def of(resolved=64, narrowest=256, **options):
    return schemes_of(RunConfig(**options), resolved, narrowest)


def test_formats_come_beside_bits():
    found = of(bits=(4,), formats="nvfp4,nf4,fp8_e4m3,int4_half")
    assert found == [
        Scheme(4, 64),
        Scheme.of("nvfp4"),
        Scheme.of("nf4", 64),
        Scheme.of("fp8_e4m3", 64),
        Scheme(4, 64, symmetric=True),
    ]
    assert of(bits="none", formats="mxfp4") == [Scheme.of("mxfp4")]
    assert len(of(bits=(4,), formats="int4")) == 1


def test_a_block_is_the_largest_that_fits_a_narrow_row():
    assert of(bits=(4,), formats="nf4", narrowest=40)[1].group_size == 32
    with pytest.raises(GroupSizeError, match="blocks of nf4 are wider than a row"):
        of(bits=(4,), formats="nf4", narrowest=16)


def test_a_group_size_that_nothing_can_use_is_refused():
    with pytest.raises(GroupSizeError, match=r"contradicts the blocks of nvfp4 .* allowed: 16"):
        of(128, bits="none", formats="nvfp4", group_size=128)
    assert of(128, bits=(4,), formats="nvfp4", group_size=128) == [Scheme(4, 128), Scheme.of("nvfp4")]


def test_an_unknown_format_is_answered_with_the_nearest():
    with pytest.raises(NumberFormatError, match="did you mean 'nvfp4'"):
        of(formats="nvpf4")
    with pytest.raises(OptionError, match="nothing to measure"):
        RunConfig(bits="none")


def test_a_method_without_a_format_fails_alone(trajectory, small, tmp_path):
    options = {**small, "quantizers": ("rtn", "hqq"), "bits": (4,), "formats": ("mxfp4",), "write_report": False}
    table = ptq_eval.run(trajectory, tmp_path / "out", **options).table
    status = {(q, f): set(own["status"]) for (q, f), own in table.groupby(["quantizer", "format"])}
    assert status["rtn", "int"] == status["rtn", "mxfp4"] == status["hqq", "int"] == {"ok"}
    assert status["hqq", "mxfp4"] == {"failed"}
    messages = set(table.loc[table["status"] == "failed", "message"])
    assert messages == {"hqq is not defined for format mxfp4, only for int"}


def test_a_run_of_nothing_that_is_possible_is_refused(trajectory, small):
    with pytest.raises(NumberFormatError, match=r"hqq is not defined .* got fp4_e2m1 .* allowed: int"):
        planned(trajectory, **{**small, "quantizers": ("hqq", "signround"), "bits": "none", "formats": ("fp4_e2m1",)})


def test_every_format_is_listed():
    rows = listing()
    assert [row["format"] for row in rows] == names()
    assert all(row["source"] and row["meaning"] and "rtn" in row["quantizers"] for row in rows)


def test_families():
    assert [format_family(n) for n in ("int", "", "int4_narrow", "nvfp4")] == ["int", "int", "int_narrow", "nvfp4"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def result(trajectory, small, out):
    options = {**small, "quantizers": ("rtn", "gptq"), "bits": (3, 4), "formats": ("nvfp4", "mxfp4")}
    return ptq_eval.run(trajectory, out, **options, bits_axis="effective")


@pytest.mark.slow
def test_rows_say_what_they_are(result):
    rows = result.table[result.table["quantizer"] == "rtn"]
    assert set(rows["format"]) == {"int", "nvfp4", "mxfp4"}
    assert set(rows.loc[rows["format"] == "mxfp4", "effective_bits"].round(4)) == {
        4.2667
    }  # some rows end in a ragged block
    assert set(rows.loc[rows["format"] == "mxfp4", "group_size"]) == {32}
    assert (rows["gaussian_mse"] > 0).all()


def test_one_law_serves_all_formats_on_an_axis_that_they_share(result):
    fits = [fit for fit in result.fit["fits"] if fit["quantizer"] == "gptq"]
    assert [fit["format"] for fit in fits] == [""]
    assert result.fit["bits_axis"] == "effective"
    lines = [c for c in result.fit["critical_tokens"] if c["quantizer"] == "gptq"]
    assert sorted(c.get("format", "int") for c in lines) == ["int", "int", "mxfp4", "nvfp4"]
    [mxfp4] = [c for c in lines if c.get("format") == "mxfp4"]
    assert (mxfp4["bits"], round(mxfp4["axis_bits"], 4)) == (4, 4.2667)


def test_the_digest_of_the_measurements_is_that_of_any_axis(result):
    rows = result.table.to_dict("records")
    assert len({digest(read(rows, axis)[0]) for axis in BITS_AXES}) == 1


def test_laws_are_compared_by_format_and_on_an_axis(result, out):
    found = ptq_eval.compare_laws(out, "kumar,ouyang", by="format", bootstrap=10, bits_axis="bits")
    labels = {one["label"] for one in found["comparisons"]}
    assert {"gptq nvfp4, format nvfp4", "rtn mxfp4, format mxfp4", "rtn, format int"} <= labels
    found = ptq_eval.compare_laws(out, "kumar,ouyang", bootstrap=10, bits_axis="gaussian")
    assert [one["label"] for one in found["comparisons"]] == ["gptq", "rtn"]


def test_the_axis_of_bits():
    row = {"bits": 4, "effective_bits": 4.25, "gaussian_mse": 2.0**-6}
    assert [axis_value(row, axis) for axis in ("bits", "effective", "gaussian")] == [4, 4.25, 3]
    whole = {"status": "ok", "run": "a", "tokens": 10, "params": 1, "quantizer": "rtn", **row, "gaussian_mse": math.nan}
    with pytest.raises(OptionError, match="--bits-axis gaussian"):
        read([whole], "gaussian")
