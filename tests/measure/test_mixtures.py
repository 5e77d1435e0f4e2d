"""Mixed precision: oracle (uniform schemes), contract of the record, and one line for every wrong plan."""

import json

import pytest
import torch

from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.errors import GroupSizeError, NumberFormatError, OptionError
from ptq_eval.measure import calibration, mixtures
from ptq_eval.measure.mixtures import Mixture
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Trial
from ptq_eval.results.store import Store
from quantizers import Scheme, get_quantizer

WIDTHS = ("int2", "int3", "int4", "int8")


@pytest.fixture(scope="module")
def layers(saved):
    return list(LanguageModel.load(saved("llama")).linears())


@pytest.fixture
def plan(tmp_path):
    """plan(formats by layer) -> the file."""

    def write(layers, name="plan.json", **more):
        path = tmp_path / name
        path.write_text(json.dumps({"layers": layers, **more}))
        return str(path)

    return write


@pytest.fixture
def records(measure, saved, tmp_path):
    """records(**options) -> what is measured of the quantized model, and the table."""

    def run(**options):
        table = measure(saved("llama"), **options).table
        return [m for m in Store(tmp_path / "out").measurements() if m.trial.scheme], table

    return run


@pytest.mark.parametrize("quantizer", ["rtn", "gptq", "awq"])
def test_a_plan_with_one_format_for_all_layers_is_that_format(records, plan, layers, quantizer):
    found, _ = records(quantizers=quantizer, bits=3, mixed=plan(dict.fromkeys(layers, "int3")))
    assert len({m.trial.key() for m in found}) == 2
    assert len({m.nll for m in found}) == 1
    assert len({m.effective_bits for m in found}) == 1


@pytest.mark.parametrize(("method", "sequential"), [("rtn", False), ("gptq", True)])
def test_each_layer_has_the_weights_of_its_own_scheme(saved, layers, method, sequential):
    """Of GPTQ, whose later layers see what the earlier ones became, those of the first input."""
    model = LanguageModel.load(saved("llama"))
    ids = torch.randint(3, 60, (4, 32), generator=torch.Generator().manual_seed(0))
    schemes = {name: Scheme.of(WIDTHS[place % len(WIDTHS)], 16) for place, name in enumerate(layers)}
    quantizer = get_quantizer(method)
    mixed = Variant(quantizer, schemes[layers[0]], schemes)
    uniform = {name: Variant(quantizer, Scheme.of(name, 16)) for name in WIDTHS}
    calibration.quantize(model, [mixed, *uniform.values()], ids, sequential=sequential)
    compared = [name for name in layers if "layers.0.self_attn" in name and "o_proj" not in name]
    for name in compared if sequential else layers:
        assert torch.equal(mixed.weights[name], uniform[schemes[name].name].weights[name]), name
    sizes = {name: model.weight(name).numel() for name in layers}
    bits = sum(sizes[name] * uniform[schemes[name].name].bits_per_weight for name in layers) / sum(sizes.values())
    assert mixed.bits_per_weight == pytest.approx(bits, rel=0.05)


def test_the_record_carries_the_formats_and_their_digest(records, plan, layers):
    formats = {name: WIDTHS[place % len(WIDTHS)] for place, name in enumerate(layers)}
    changed = {**formats, layers[0]: "int8"}
    both = [plan(formats, "a.json"), plan(changed, "b.json"), plan(dict(reversed(formats.items())), "same.json")]
    found, table = records(quantizers="rtn", bits="none", mixed=",".join(both))
    assert {m.status for m in found} == {"ok"}
    assert len({m.trial.key() for m in found}) == len(found) == 2
    first = found[0].trial
    assert first.scheme.layers[layers[1]] == ("int3", 16)
    assert first.scheme.format == mixtures.read(both[0], 16, 16).name
    assert first.scheme.format.startswith("mixed-")
    again = Trial.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.scheme == first.scheme
    assert again.key() == first.key()
    row = table[table["format"] == first.scheme.format].iloc[0]
    assert 2 < row["effective_bits"] < 6
    assert 0 < row["gaussian_mse"] < 0.2
    assert row["delta"] == row["delta"]


def test_the_scheme_of_a_record_is_that_of_the_plan():
    own = {"a": Scheme(3, 16), "b": Scheme.of("nvfp4"), "c": Scheme(8, None, symmetric=True)}
    _, back = mixtures.schemes_of(mixtures.recorded(Mixture(own)))
    assert back == own
    assert mixtures.schemes_of(mixtures.recorded(own["b"])) == (own["b"], {})


def wrong_plans(layers):
    good = dict.fromkeys(layers, "int4")
    few = dict(list(good.items())[1:])
    other = {**few, layers[0].replace("q_proj", "q_prj"): "int4"}
    return {
        "other layer": ({"layers": other}, OptionError, "did you mean"),
        "missing layer": ({"layers": few}, OptionError, f"no format for a layer | got {layers[0]} of"),
        "unknown format": ({"layers": {**good, layers[0]: "int44"}}, NumberFormatError, "int44"),
        "no name": ({"layers": {**good, layers[0]: 4}}, NumberFormatError, layers[0]),
        "wide group": ({"layers": good, "group_size": 4096}, GroupSizeError, "4096"),
        "no layers": ({}, OptionError, 'no "layers"'),
        "other shapes": ({"layers": good, "shapes": {layers[0]: [8, 8]}}, OptionError, "other shapes"),
        "no shapes": ({"layers": good, "shapes": [8, 8]}, OptionError, '"shapes" of the mixed-precision plan'),
        "a list": ([1], OptionError, 'no "layers"'),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("other layer", "missing layer", "unknown format", "no name", "wide group", "no layers", "a list"),
        *("other shapes", "no shapes"),
    ],
)
def test_a_wrong_plan_is_one_line(measure, saved, layers, tmp_path, case):
    content, error, says = wrong_plans(layers)[case]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(error) as raised:
        measure(saved("llama"), quantizers="rtn", bits=4, mixed=str(path))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("own", [True, False])
def test_a_plan_made_for_other_weights_is_noted(measure, saved, plan, layers, own):
    sha = verify_all(discover([saved("llama")]))[0].weights_sha if own else "0" * 64
    path = plan(dict.fromkeys(layers, "int4"), checkpoint={"run": "other", "step": 7, "weights_sha": sha})
    found = measure(saved("llama"), quantizers="rtn", bits=4, mixed=path)
    noted = [text for text in found.fit["warnings"] if "was made for other@7" in text]
    assert len(noted) == (not own)


def test_a_plan_that_is_no_json_or_for_a_backend_is_one_line(measure, saved, plan, layers, tmp_path):
    (tmp_path / "text").write_text("int4")
    with pytest.raises(OptionError, match="cannot be read"):
        measure(saved("llama"), mixed=str(tmp_path / "text"))
    with pytest.raises(OptionError, match="backends quantize all layers alike"):
        measure(saved("llama"), quantizers="gptqmodel:gptq", mixed=plan(dict.fromkeys(layers, "int4")))
