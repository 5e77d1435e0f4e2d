"""Contract: the conformance kit on every installed quantizer, and the kit itself on broken ones."""

import dataclasses
import math

import pytest
import torch

from quantizers import (
    MissingStatsError,
    OptionValueError,
    QuantizedWeight,
    Scheme,
    UnknownOptionError,
    UnknownQuantizerError,
    available_quantizers,
    get_quantizer,
)
from quantizers.errors import BitsRangeError, FormatError, GroupSizeRangeError
from quantizers.rtn import RTN
from quantizers.testing import CHECKS, check_quantizer

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
QUICK = {"signround": {"steps": 5}, "hadamard-signround": {"steps": 5}}
ROTATED = [name for name in available_quantizers() if name.startswith("hadamard-") and name != "hadamard-gptq"]
USUAL = [(name, QUICK.get(name, {})) for name in available_quantizers() if name not in ROTATED]
MORE = [
    *((name, QUICK.get(name, {})) for name in ROTATED),
    ("rtn", {"mse": True}),
    ("gptq", {"act_order": True}),
    ("gptq", {"act_order": True, "static_groups": True, "dead": "round"}),
    ("gptq", {"group_scale_from": "current", "block_size": 7}),
    ("awq", {"clip": True}),
    ("awq", {"relative": True}),
    ("hqq", {"round_zero": True, "norm": 1.0}),
    ("gptq-noclip", {"act_order": False, "block_size": 7}),
    ("signround", {"steps": 5, "mismatch": True}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("name", "options"), [*USUAL, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)], ids=str
)
def test_conformance(name, options, check, device):
    check(lambda: get_quantizer(name, **options), device)


def test_built_in_quantizers_are_installed():
    assert {"rtn", "gptq", "awq", "hqq", "gptq-noclip"} <= set(available_quantizers())


@pytest.mark.parametrize("name", available_quantizers())
def test_every_method_that_takes_no_size_of_inputs_has_a_rotated_form_and_a_source(name):
    """Mean and largest |x| do not follow from the statistics of rotated inputs."""
    own = get_quantizer(name)
    assert own.source or not type(own).__module__.startswith("quantizers.")
    if type(own).__module__.startswith("quantizers.") and not name.startswith("hadamard-"):
        assert (f"hadamard-{name}" in available_quantizers()) == (name not in ("awq", "smoothquant"))


def changed(result: QuantizedWeight, **fields) -> QuantizedWeight:
    return dataclasses.replace(result, **fields)


class ChangesTheWeight(RTN):
    def quantize(self, weight, scheme, stats=None):
        result = super().quantize(weight, scheme, stats)
        with torch.no_grad():
            weight.mul_(0.5)
        return result


class ChangesTheStatistics(RTN):
    def quantize(self, weight, scheme, stats=None):
        if stats is not None:
            stats.update(torch.ones(1, weight.shape[1]))
        return super().quantize(weight, scheme, stats)


class DrawsFromTheGlobalGenerator(RTN):
    def quantize(self, weight, scheme, stats=None):
        torch.rand(1)
        return super().quantize(weight, scheme, stats)


class IgnoresBits(RTN):
    def quantize(self, weight, scheme, stats=None):
        other = dataclasses.replace(scheme, bits=2) if scheme.format == "int" else scheme
        result = super().quantize(weight, other, stats)
        return changed(result, scheme=scheme)


class CodesOutOfRange(RTN):
    def quantize(self, weight, scheme, stats=None):
        result = super().quantize(weight, scheme, stats)
        return changed(result, codes=result.codes + 1, zero=result.zero + 1)


class NeedsStatisticsButTakesNone(RTN):
    needs_stats = True

    def prepare(self, weight, scheme, stats):
        return RTN().prepare(weight, scheme, None)


class ReversesTheGroup(RTN):
    def quantize_group(self, weights, scheme, stats=None):
        return super().quantize_group(weights, scheme, stats)[::-1]


class GridOfTheFirstScheme(RTN):
    def quantize_grid(self, weights, schemes, stats=None):
        return [
            [changed(result, scheme=scheme) for result in self.quantize_group(weights, schemes[0], stats)]
            for scheme in schemes
        ]


class WithoutVersion(RTN):
    version = ""


@pytest.mark.parametrize(
    "broken",
    [
        ChangesTheWeight,
        ChangesTheStatistics,
        DrawsFromTheGlobalGenerator,
        IgnoresBits,
        CodesOutOfRange,
        NeedsStatisticsButTakesNone,
        ReversesTheGroup,
        GridOfTheFirstScheme,
        WithoutVersion,
    ],
)
def test_the_kit_catches(broken):
    with pytest.raises(AssertionError):
        check_quantizer(broken)


def test_unknown_quantizer_names_the_nearest():
    with pytest.raises(UnknownQuantizerError, match="did you mean 'gptq'"):
        get_quantizer("gpqt")


def test_unknown_option_names_the_nearest():
    with pytest.raises(UnknownOptionError, match="did you mean 'damping'"):
        get_quantizer("gptq", dampening=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gptq", {"damping": -0.1}),
        ("gptq", {"damping": float("nan")}),
        ("gptq", {"damping": "much"}),
        ("gptq", {"act_order": 1}),
        ("gptq", {"block_size": 0}),
        ("gptq", {"block_size": 12.5}),
        ("gptq", {"group_scale_from": "later"}),
        ("awq", {"n_grid": 0}),
        ("awq", {"clip": "yes"}),
    ],
    ids=str,
)
def test_wrong_option_value(name, options):
    with pytest.raises(OptionValueError, match=next(iter(options))):
        get_quantizer(name, **options)


def test_options_carry_defaults_and_one_type_per_option():
    options = get_quantizer("gptq", damping=1).options()
    assert options["damping"] == 1.0
    assert isinstance(options["damping"], float)
    assert options["act_order"] is False
    assert options["block_size"] == 128


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_bits_out_of_range(bits):
    with pytest.raises(BitsRangeError, match="2 to 8"):
        Scheme(bits)


@pytest.mark.parametrize("size", [0, -1, 16.0, True])
def test_group_size_out_of_range(size):
    with pytest.raises(GroupSizeRangeError, match="positive"):
        Scheme(4, size)


def test_group_larger_than_a_row():
    with pytest.raises(GroupSizeRangeError, match="larger than a row of 64"):
        Scheme(4, 128).groups(64)


def test_unknown_format():
    with pytest.raises(FormatError, match=r"no format 'nf5'.*did you mean 'nf4'"):
        Scheme(4, format="nf5")
    with pytest.raises(FormatError, match="did you mean 'nvfp4'"):
        Scheme.of("nvpf4")


def test_a_format_fixes_bits_symmetry_and_group():
    assert Scheme.of("nvfp4") == Scheme(4, 16, True, "nvfp4")
    assert Scheme.of("fp8_e4m3", 32) == Scheme(8, 32, True, "fp8_e4m3")
    assert Scheme.of("int3_half") == Scheme(3, 128, symmetric=True)
    assert all(Scheme.of(name).name == name for name in ("int4", "int4_half", "int4_narrow", "mxfp4", "q4_k"))
    with pytest.raises(FormatError, match="8 bits and is symmetric"):
        Scheme(4, 128, format="fp8_e4m3")
    with pytest.raises(GroupSizeRangeError, match="nvfp4 has groups of 16 columns, got group_size 128"):
        Scheme.of("nvfp4", 128)
    with pytest.raises(GroupSizeRangeError, match="nf4 has groups of 64, 32"):
        Scheme.of("nf4", None)


def test_a_method_without_a_format_refuses_it():
    class Integers(RTN):
        formats = ("int",)

    with pytest.raises(FormatError, match="rtn is not defined for format nf4"):
        Integers().quantize(torch.ones(2, 64), Scheme.of("nf4"))


def test_groups_of_a_row():
    assert [Scheme(4, size).groups(96) for size in (None, 32, 96, 40)] == [1, 3, 1, 3]


def test_errors_are_value_errors():
    for error in (BitsRangeError, GroupSizeRangeError, UnknownOptionError, MissingStatsError):
        assert issubclass(error, ValueError)


@pytest.mark.parametrize("name", [n for n, p in available_quantizers().items() if p.value.startswith("quantizers.")])
def test_every_number_among_the_options_has_a_range(name):
    cls = type(get_quantizer(name))
    for spec in dataclasses.fields(cls):
        kind, low, high = (spec.metadata[key] for key in ("type", "low", "high"))
        if kind not in (int, float):
            continue
        assert low <= spec.default <= high, spec.name
        for beyond in (low - 1, high * 2, kind(high) + 1, math.nan):
            with pytest.raises(
                OptionValueError, match=rf"{name} option '{spec.name}': allowed is {kind.__name__} from"
            ):
                get_quantizer(name, **{spec.name: beyond})
        for end in (low, high):
            assert getattr(get_quantizer(name, **{spec.name: kind(end)}), spec.name) == end


def test_an_option_that_was_added_later_is_named_where_it_is_used_alone():
    """Records of a default AWQ keep the keys that they had before `relative` existed."""
    assert get_quantizer("awq").options() == {"n_grid": 20, "clip": False}
    assert get_quantizer("awq", relative=True).options() == {"n_grid": 20, "clip": False, "relative": True}
    assert "relative" in type(get_quantizer("awq")).option_help()
