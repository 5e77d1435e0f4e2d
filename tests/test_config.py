"""Contract: what a run may be asked for, and how each wrong wish is answered."""

import dataclasses
import json

import pytest

from ptq_eval.config import RunConfig, parse_options
from ptq_eval.errors import BitsError, DeviceError, GroupSizeError, OptionError, PtqEvalError, UnknownPluginError

WRONG = [
    ({"bits": (1,)}, BitsError, "got 1 | allowed: whole numbers from 2 to 8"),
    ({"bits": (4, 9)}, BitsError, "got 9"),
    ({"bits": (2.5,)}, BitsError, "got 2.5"),
    ({"bits": (True,)}, BitsError, "got True"),
    ({"bits": ()}, OptionError, "nothing to measure"),
    ({"quantizers": ()}, OptionError, "nothing to measure"),
    ({"quantizers": ("gtpq",)}, UnknownPluginError, "did you mean 'gptq'?"),
    ({"quantizers": "rtn"}, OptionError, "--quantizers"),
    ({"bits": 4}, OptionError, "--bits"),
    ({"group_size": 0}, GroupSizeError, "got 0"),
    ({"group_size": -16}, GroupSizeError, "got -16"),
    ({"group_size": 16.0}, GroupSizeError, "got 16.0"),
    ({"group_size": True}, GroupSizeError, "got True"),
    ({"group_size": "big"}, GroupSizeError, "got big"),
    ({"calibration": "both"}, OptionError, "allowed: default, shared, sequential"),
    ({"dtype": "float64"}, OptionError, "allowed: float32, bfloat16, float16"),
    ({"seq_len": 1}, OptionError, "--seq-len is too small | got 1 | allowed: at least 2"),
    ({"eval_windows": 1}, OptionError, "--eval-windows"),
    ({"calib_windows": 0}, OptionError, "--calib-windows"),
    ({"bootstrap": 9}, OptionError, "--bootstrap"),
    ({"memory": "1e400"}, OptionError, "--memory is not a number of bytes | got '1e400'"),
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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RunConfig(device="auto").resolve_device() == "cuda"
    assert RunConfig(device="cuda:1").resolve_device() == "cuda:1"


def test_options_that_may_grow_are_not_fixed():
    fixed = RunConfig().fixed()
    changed = RunConfig(quantizers=("rtn",), bits=(5,), shard=(2, 3), seed=4, bootstrap=20).fixed()
    assert fixed == changed
    for name, value in {"group_size": 64, "seq_len": 99, "symmetric": True, "eval_text": "other.txt"}.items():
        assert RunConfig(**{name: value}).fixed() != fixed


def test_everything_survives_json():
    config = RunConfig(options={"gptq": {"act_order": True}})
    assert json.loads(json.dumps(config.to_dict())).keys() == {f.name for f in dataclasses.fields(RunConfig)}


def test_options_of_quantizers_are_parsed():
    given = ["gptq.act_order=true", "gptq.damping=0.05", "awq.clip=false", "gptq.dead=round"]
    assert parse_options(given) == {
        "gptq": {"act_order": True, "damping": 0.05, "dead": "round"},
        "awq": {"clip": False},
    }
    for wrong in ("gptq", "gptq=1", "act_order=true", "gptq.act_order", "gptq.x=[1"):
        with pytest.raises(OptionError):
            parse_options([wrong])


def test_every_error_has_an_exit_code_of_its_own():
    from ptq_eval import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, PtqEvalError)]
    codes = [c.exit_code for c in classes]
    assert len(set(codes)) == len(codes) > 15
