"""Oracle and property: reading weights as bytes against torch reading them as tensors."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.checkpoints import weights
from ptq_eval.checkpoints.weights import read_weights
from ptq_eval.models.weight_files import find_weights

FLOATS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def slow_hash(tensors, names):
    """The definition, tensor by tensor: name, type, shape, then the bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        kind = names[str(tensor.dtype).removeprefix("torch.")]
        digest.update(json.dumps([name, kind, list(tensor.shape)]).encode())
        digest.update(bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()))
    return digest.hexdigest()


def test_hash_is_the_definition_for_one_file_shards_and_pickle(save, tmp_path):
    import torch
    from safetensors.torch import load_file

    model = save(tmp_path / "one")
    save(tmp_path / "many", max_shard_size="20KB")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    (tmp_path / "pickle").mkdir()
    torch.save(tensors, tmp_path / "pickle" / "pytorch_model.bin")
    hashes = {}
    for name in ("one", "many", "pickle"):
        found = find_weights(tmp_path / name)
        hashes[name] = read_weights(found.files).sha
        assert (len(found.files) > 1) == (name == "many")
    assert set(hashes.values()) == {slow_hash(tensors, FLOATS)}
    assert model.num_parameters() == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape"])
def test_hash_sees_every_change(tmp_path, change):
    import torch
    from safetensors.torch import save_file

    def sha(tensors):
        save_file(tensors, tmp_path / "model.safetensors")
        return read_weights((tmp_path / "model.safetensors",)).sha

    base = {"a": torch.zeros(4, 2), "b": torch.ones(3)}
    other = {
        "value": {**base, "a": torch.full((4, 2), -0.0)},
        "name": {"c": base["a"], "b": base["b"]},
        "dtype": {**base, "a": torch.zeros(4, 2, dtype=torch.int32)},
        "shape": {**base, "a": torch.zeros(2, 4)},
    }[change]
    assert sha(base) != sha(other)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_pattern_is_judged_as_torch_judges_it(dtype):
    import torch

    width = getattr(torch, dtype).itemsize
    ending = {1: torch.uint8, 2: torch.int16}.get(width)
    if ending is None:  # too many patterns: those around every boundary of the exponent
        ending = {4: torch.int32, 8: torch.int64}[width]
        edges = [torch.tensor(v, dtype=getattr(torch, dtype)).view(ending).item() for v in (0.0, 1.0, float("inf"))]
        patterns = torch.tensor([e + d for e in edges for d in (-1, 0, 1)] + [-1, -2], dtype=ending)
    else:
        info = torch.iinfo(ending)
        patterns = torch.arange(info.min, info.max + 1).to(ending)
    values = patterns.view(getattr(torch, dtype))
    finite = torch.isfinite(values.float() if width < 4 else values)
    for pattern, expected in zip(patterns[:: max(1, len(patterns) // 512)], finite[:: max(1, len(finite) // 512)]):
        raw = bytes(pattern.reshape(1).view(torch.uint8).tolist())
        mask = weights._EXPONENTS[FLOATS[dtype]][1]
        assert (weights._largest_exponent(raw, FLOATS[dtype]) < mask) == bool(expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("value", "huge"), [(-1e30, True), (1e19, True), (9e18, False), (1e10, False)])
def test_finite_numbers_that_cannot_be_squared_are_named(tmp_path, dtype, value, huge):
    import torch
    from safetensors.torch import save_file

    large = torch.ones(99, dtype=getattr(torch, dtype))
    large[7] = value
    save_file({"fine": torch.ones(5), "large": large}, tmp_path / "w.safetensors")
    report = read_weights((tmp_path / "w.safetensors",))
    assert report.huge == (("large",) if huge else ())
    assert report.non_finite == ()


@settings(max_examples=30, deadline=None)
@given(
    place=st.integers(0, 99),
    bad=st.sampled_from(["nan", "inf", "-inf"]),
    chunk=st.sampled_from([8, 64, 4096]),
)
def test_property_one_bad_value_is_found_wherever_it_is(tmp_path_factory, place, bad, chunk):
    import torch
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("w") / "model.safetensors"
    values = torch.zeros(100)
    values[place] = float(bad)
    save_file({"fine": torch.ones(5), "bad": values, "counts": torch.full((2,), -1)}, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "CHUNK", chunk)
        report = read_weights((file,))
    assert report.non_finite == ("bad",)
    assert report.sha == read_weights((file,)).sha
