"""Contract: what a run may be asked for, and how each wrong wish is answered."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints.overrides import Overrides, Place
from ptq_eval.config.options import SWITCH, declared
from ptq_eval.config.plan import PlanConfig
from ptq_eval.config.run import FIT_ONLY, GRID, NEUTRAL, RunConfig
from ptq_eval.config.watch import WatchConfig
from ptq_eval.errors import BitsError, DeviceError, GroupSizeError, OptionError, PtqEvalError, UnknownPluginError
from ptq_eval.pretrain import PretrainConfig

WRONG = [
    ({"bits": (1,)}, BitsError, "too small | got 1 | allowed: 2 to 8"),
    ({"bits": (4, 9)}, BitsError, "got 9"),
    ({"bits": (2.5,)}, BitsError, "got 2.5"),
    ({"bits": (True,)}, BitsError, "got True"),
    ({"bits": ()}, OptionError, "nothing to measure"),
    ({"quantizers": ()}, OptionError, "nothing to measure"),
    ({"quantizers": ("gtpq",)}, UnknownPluginError, "did you mean 'gptq'?"),
    ({"group_size": 0}, GroupSizeError, "got 0"),
    ({"group_size": -16}, GroupSizeError, "got -16"),
    ({"group_size": 16.5}, GroupSizeError, "got 16.5"),
    ({"group_size": True}, GroupSizeError, "got True"),
    ({"group_size": "big"}, GroupSizeError, "got 'big' | allowed: at least 1; or none, auto"),
    ({"calibration": "both"}, OptionError, "allowed: default, shared, sequential"),
    ({"dtype": "float64"}, OptionError, "allowed: float32, bfloat16, float16"),
    ({"seq_len": 1}, OptionError, "--seq-len is too small | got 1 | allowed: at least 2"),
    ({"eval_windows": 1}, OptionError, "--eval-windows"),
    ({"calib_windows": 0}, OptionError, "--calib-windows"),
    ({"bootstrap": 9}, OptionError, "--bootstrap"),
    ({"memory": "1e400"}, OptionError, "--memory is not a number of bytes | got '1e400'"),
    ({"memory": 0}, OptionError, "--memory is too small"),
    ({"calib_windows": None}, OptionError, "--calib-windows is not a whole number | got None"),
    ({"seq_len": [128]}, OptionError, "--seq-len is not a whole number"),
    ({"seq_len": "128x"}, OptionError, "--seq-len is not a whole number | got '128x'"),
    ({"eval_windows": "some"}, OptionError, "or all"),
    ({"symmetric": 1}, OptionError, "--symmetric is neither true nor false"),
    ({"eval_text": 5}, OptionError, "--eval-text is not text"),
    ({"precision": "half"}, OptionError, "--precision is not a number"),
    ({"precision": 1}, OptionError, "--precision is too large | got 1 | allowed: above 0, below 1"),
    ({"calibration": "sequental"}, OptionError, "did you mean 'sequential'?"),
    ({"shard": "1"}, OptionError, "--shard is not i/n"),
    ({"shard": 3}, OptionError, "--shard is not i/n"),
    ({"shard": (1, "x")}, OptionError, "a part of --shard is not a whole number"),
    ({"options": "gptq.act_order"}, OptionError, "QUANTIZER.OPTION=VALUE"),
    ({"options": 5}, OptionError, "QUANTIZER.OPTION=VALUE"),
    ({"options": {"gptq": 5}}, OptionError, "a mapping for each quantizer"),
    ({"shard": (0, 2)}, OptionError, "got 0/2"),
    ({"shard": (3, 2)}, OptionError, "got 3/2"),
    ({"options": {"awq": {"clip": True}}, "quantizers": ("rtn",)}, OptionError, "got awq | allowed: rtn"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG, ids=[str(w[0]) for w in WRONG])
def test_every_wrong_option_has_its_line(options, error, words):
    with pytest.raises(error) as caught:
        RunConfig(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_repeated_bits_and_quantizers_count_once():
    config = RunConfig(bits=(4, 2, 4), quantizers=("rtn", "awq", "rtn"))
    assert (config.bits, config.quantizers) == ((4, 2), ("rtn", "awq"))


AS_ON_THE_COMMAND_LINE = [
    ("quantizers", "rtn, gptq", ("rtn", "gptq")),
    ("bits", "2,3", (2, 3)),
    ("bits", 4, (4,)),
    ("bits", (3.0,), (3,)),
    ("group_size", "none", None),
    ("group_size", "64", 64),
    ("group_size", 16.0, 16),
    ("symmetric", "true", True),
    ("options", "gptq.act_order=true", {"gptq": {"act_order": True}}),
    ("eval_text", Path("text.txt"), "text.txt"),
    ("seq_len", "1_024", 1024),
    ("eval_windows", "all", None),
    ("calib_windows", "1k,32", (1000, 32)),
    ("calib_windows", 32, (32,)),
    ("calib_text", Path("text.txt"), ("text.txt",)),
    ("shard", "2/4", (2, 4)),
    ("shard", [2, 4], (2, 4)),
    ("precision", "2e-2", 0.02),
    ("memory", "8Gi", 8 * 2**30),
    ("bootstrap", "1e3", 1000),
]


@pytest.mark.parametrize(("name", "value", "kept"), AS_ON_THE_COMMAND_LINE)
def test_python_takes_what_the_command_line_takes(name, value, kept):
    assert getattr(RunConfig(**{name: value}), name) == kept


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.binary(max_size=3), st.just(object()),
    st.lists(st.one_of(st.integers(-1, 9), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none()),
)  # fmt: skip


@pytest.mark.parametrize("cls", [RunConfig, PretrainConfig, PlanConfig, Overrides, Place], ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_any_value_is_kept_or_is_an_error_that_a_user_can_fix(cls, data):
    name = data.draw(st.sampled_from(sorted(declared(cls))))
    value = data.draw(ANYTHING)
    try:
        made = cls(**{name: value})
    except PtqEvalError:
        return
    assert getattr(cls(**{name: getattr(made, name)}), name) == getattr(made, name)


@pytest.mark.parametrize("cls", [RunConfig, PretrainConfig, PlanConfig, Overrides], ids=lambda cls: cls.__name__)
def test_a_default_is_read_back_from_what_the_help_shows(cls):
    for name, spec in declared(cls).items():
        assert spec.read(spec.default) == getattr(cls(), name)
        if spec.flag and spec.default not in (None, (), {}) and spec.kind is not SWITCH and not spec.shown:
            assert spec.read(spec.written(spec.default)) == spec.default, name


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'group_size'"):
        RunConfig.of({"groupsize": 64})


@pytest.mark.parametrize(
    ("narrowest", "size"), [(4096, 128), (128, 128), (127, 64), (48, 32), (32, 32), (31, 16), (1, 1)]
)
def test_auto_group_size_fits_every_row(narrowest, size):
    assert RunConfig().resolve_group_size({"wide": 5000, "narrow": narrowest}) == size


def test_a_group_larger_than_a_row_names_the_layer():
    widths = {"layers.0.up": 64, "layers.0.down": 48}
    assert RunConfig(group_size=48).resolve_group_size(widths) == 48
    assert RunConfig(group_size=None).resolve_group_size(widths) is None
    with pytest.raises(GroupSizeError) as caught:
        RunConfig(group_size=49).resolve_group_size(widths)
    assert "49 with rows of 48 columns in layers.0.down" in str(caught.value)
    assert "remedy: --group-size 32" in str(caught.value)


def test_devices(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert RunConfig(device="auto").resolve_device() == "cpu"
    with pytest.raises(DeviceError, match="no CUDA device"):
        RunConfig(device="cuda:1").resolve_device()
    with pytest.raises(DeviceError, match="unknown device"):
        RunConfig(device="tpu").resolve_device()
    with pytest.raises(DeviceError, match="float64, which mps lacks"):
        RunConfig(device="mps").resolve_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert RunConfig(device="auto").resolve_device() == "cuda"
    assert RunConfig(device="cuda:1").resolve_device() == "cuda:1"
    with pytest.raises(DeviceError, match=r"no CUDA device 2.*cpu, cuda:0, cuda:1"):
        RunConfig(device="cuda:2").resolve_device()


def test_options_that_may_grow_are_not_fixed():
    fixed = RunConfig().fixed()
    changed = RunConfig(quantizers=("rtn",), bits=(5,), shard=(2, 3), seed=4, bootstrap=20).fixed()
    assert fixed == changed
    for name, value in {"group_size": 64, "seq_len": 99, "symmetric": True, "eval_text": "other.txt"}.items():
        assert RunConfig(**{name: value}).fixed() != fixed


def test_the_options_of_a_measurement_are_the_fixed_ones_and_the_grid():
    config = RunConfig(bits=(3,), memory="1GB", backend_seconds=5, seed=4, trust_remote_code=True)
    assert config.measured().keys() == {*config.fixed(), *GRID}
    assert config.measured() == RunConfig(bits=(3,)).measured()
    assert {*GRID, *NEUTRAL, *FIT_ONLY} < config.to_dict().keys()


def test_everything_survives_json():
    config = RunConfig(options={"gptq": {"act_order": True}})
    assert json.loads(json.dumps(config.to_dict())).keys() == {f.name for f in dataclasses.fields(RunConfig)}


def test_options_of_quantizers_are_parsed():
    given = ["gptq.act_order=true", "gptq.damping=0.05", "awq.clip=false", "gptq.dead=round"]
    assert RunConfig(options=given).options == {
        "gptq": {"act_order": True, "damping": 0.05, "dead": "round"},
        "awq": {"clip": False},
    }
    for written in ("128", "1.28e2", "128.0", "1_28", "0.128k"):
        (options,) = RunConfig(options=[f"gptq.block_size={written}"]).options.values()
        assert options == {"block_size": 128}
        assert isinstance(options["block_size"], int)
    for wrong in ("gptq", "gptq=1", "act_order=true", "gptq.act_order"):
        with pytest.raises(OptionError):
            RunConfig(options=[wrong])


def test_every_error_has_an_exit_code_of_its_own():
    from ptq_eval import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, PtqEvalError)]
    codes = [c.exit_code for c in classes]
    assert len(set(codes)) == len(codes) > 15


@pytest.mark.parametrize("bits", [[3.5], "2,3k", ["four"]])
def test_bits_are_refused_as_bits(bits):
    with pytest.raises(BitsError, match=r"not a whole number of bits .* allowed: 2 to 8; or none"):
        RunConfig(bits=bits)


@pytest.mark.parametrize("cls", [RunConfig, WatchConfig])
def test_arguments_are_read_back_as_the_value_they_are_of(cls):
    values = {
        "quantizers": "rtn,gptq", "bits": "2,3", "group_size": "none", "eval_windows": "all", "symmetric": True,
        "include_head": True, "calib_length": "64,128", "memory": "2GB", "precision": 0.01, "seed": 7,
        "options": {"gptq": {"damping": 0.02, "act_order": True}},
        "every": 2.5, "budget": 0.05, "alert_bits": "3,4", "alert_command": "notify me", "once": True, "pid": 12,
    }  # fmt: skip
    own = {name: value for name, value in values.items() if name in declared(cls)}
    assert len(own) > 4
    config = cls.of(own)
    for name in declared(cls):
        spec, value = declared(cls)[name], getattr(config, name)
        flag, *found = spec.arguments(value) or [None]
        if spec.kind is SWITCH:
            assert flag == (spec.flag if value else spec.off or None)
        elif name == "options":
            assert [flag, *found] == ["--option", "gptq.damping=0.02", "--option", "gptq.act_order=True"]
            assert spec.read(tuple(found[::2])) == value
        elif flag is not None:
            assert flag == spec.flag
            assert spec.read(*found) == value, name
        else:
            assert value == spec.default, name
