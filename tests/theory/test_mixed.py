"""Plans of mixed precision: contract of what is written, oracle (`run` measures the plan too), one line for errors."""

import json

import pytest

import ptq_eval
from ptq_eval.errors import OptionError
from ptq_eval.jobs.sensitivity import sensitivity
from ptq_eval.measure import mixtures
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.report import studies
from ptq_eval.report.common.data import Study
from ptq_eval.report.mixed import page as mixed_page
from ptq_eval.report.run import page as run_page
from ptq_eval.report.web import page as web_page
from ptq_eval.results.store import Store
from quantizers import Scheme
from tests.report.synthetic import make_fit, make_run, make_table

GRID = {"bits": (2, 3, 4), "group_size": 16, "seq_len": 32, "eval_windows": 12, "calib_windows": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def options(texts):
    return {**GRID, "eval_text": texts.evaluation, "calib_text": texts.calibration}


@pytest.fixture(scope="module", params=[pytest.param("rtn", marks=pytest.mark.slow), "gptq"])
def made(request, saved, options, tmp_path_factory, whole_pictures):
    """(folder, mixed.json, quantizer)."""
    whole_pictures.add("png")
    out = tmp_path_factory.mktemp("mixed") / "out"
    sensitivity(saved("llama"), out, quantizers=request.param, budget="4.2bits,uniform", **options)
    return out, json.loads((out / "mixed.json").read_text()), request.param


def test_every_plan_is_within_its_budget_and_predicted_from_its_layers(made):
    out, record, _ = made
    (entry,) = record["checkpoints"]
    uniform = {row["scheme"]: row for row in entry["uniform"]}
    assert list(uniform) == ["int2", "int3", "int4"]
    plans = {row["budget"]: row for row in entry["plans"]}
    assert list(plans) == ["4.2bits", "size of int3"]
    assert plans["4.2bits"]["bits_per_weight"] <= 4.2
    assert plans["size of int3"]["bytes"] <= uniform["int3"]["bytes"]
    assert plans["size of int3"]["predicted_kl"] <= uniform["int3"]["predicted_kl"] * (1 + 1e-4)
    (study,) = json.loads((out / "sensitivity.json").read_text())["checkpoints"]
    alone = {(row["layer"], f"int{row['bits']}"): row for row in study["rows"]}
    for plan in plans.values():
        rows = [alone[layer, form] for layer, form in plan["layers"].items()]
        assert plan["predicted_kl"] == pytest.approx(sum(row["kl"] for row in rows))
        shared = [
            {form for layer, form in plan["layers"].items() if name in layer}
            for name in ("0.self_attn.q", "0.self_attn.k")
        ]
        assert shared[0] == shared[1]
    for row in study["rows"]:
        if row["layer"] == "all":
            assert uniform[f"int{row['bits']}"]["delta"] == pytest.approx(row["delta"], abs=1e-6)


def test_a_run_of_the_plan_measures_the_same(made, saved, options, tmp_path):
    out, record, quantizer = made
    plan = record["checkpoints"][0]["plans"][0]
    grid = {"bits": plan["against"][3:], "quantizers": quantizer, "mixed": str(out / plan["file"]), "bootstrap": 10}
    ptq_eval.run(saved("llama"), tmp_path / "run", write_report=False, **{**options, **grid})
    measured = {m.trial.scheme.format: m for m in Store(tmp_path / "run").measurements() if m.trial.scheme}
    name = mixtures.read(out / plan["file"], 16, 16).name
    full = next(m for m in Store(tmp_path / "run").measurements() if not m.trial.scheme)
    assert measured[name].loss - full.loss == pytest.approx(plan["delta"], abs=1e-6)
    assert measured[name].bits_per_weight == pytest.approx(plan["bits_per_weight"])
    difference = measured[name].loss - measured["int"].loss
    assert plan["delta_difference"] == pytest.approx(difference, abs=1e-6)


def test_a_plan_is_refused_for_a_model_of_other_shapes(made, saved, options, tmp_path):
    out, record, _ = made
    path = out / record["checkpoints"][0]["plans"][0]["file"]
    plan = json.loads(path.read_text())
    assert list(plan["shapes"]) == list(plan["layers"])
    plan["shapes"] = {name: [2 * rows, columns] for name, (rows, columns) in plan["shapes"].items()}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(OptionError, match="a model of other shapes"):
        ptq_eval.run(saved("llama"), tmp_path / "run", mixed=str(tmp_path / "plan.json"), **options)


def test_the_page_names_every_plan(made):
    out, record, _ = made
    page = (out / "mixed.md").read_text()
    for plan in record["checkpoints"][0]["plans"]:
        assert f"mixed, {plan['budget']}" in page
        assert (out / plan["file"]).exists()
        assert plan["file"] in page
    assert (out / "figures" / "mixed.png").stat().st_size > 10_000


def test_the_price_of_a_layer_is_found_by_the_key_of_its_trial(made):
    """Whatever the columns call the quantizer: two methods may be called alike."""
    (study,) = json.loads((made[0] / "sensitivity.json").read_text())["checkpoints"]
    heads = {(row["quantizer"], row["bits"]): row["key"] for row in study["rows"]}
    assert len({*heads.values()}) == len(heads) == 3
    assert all(row["key"] == heads[row["quantizer"], row["bits"]] for row in study["rows"])


def test_the_report_has_the_plans_and_draws_layers_and_models_in_the_browser(made):
    out, record, quantizer = made
    table = make_table()
    study, records = Study(table, make_fit(table), make_run(table)), studies(out)
    assert records[3] == record
    assert f"## {mixed_page.TITLE}\n" in run_page.document(study, *records)
    html = web_page.document(study, records, figures=out / "figures")
    for plan in record["checkpoints"][0]["plans"]:
        assert f"mixed, {plan['budget']}" in html
    for name in ("mixed", f"sensitivity_{quantizer}"):
        assert f'data-figure="{name}"' in html
        assert f'"figures/{name}.csv":' in html
    assert 'class="picture"' not in html


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"budget": "1.5bits"}, "1.5bits | allowed: at least"),
        ({"budget": "1kB"}, "1kB | allowed: at least"),
        ({"budget": "3"}, "not a size"),
        ({"budget": "0bits"}, "positive"),
        ({"budget": "quick"}, "not a size"),
        ({"budget": "3bits", "by": "part"}, "--by part"),
        ({"budget": "3bits", "bits": (4,)}, "several formats"),
        ({"mixed": "plan.json"}, "--budget makes a plan"),
        ({"budget": "4bits", "quantizers": "gguf:q4_0"}, "backends quantize all layers alike"),
        ({"by": "part", "quantizers": "gguf:q4_0"}, "gguf:q4_0 with --by part"),
        ({"budget": "4bits", "quantizers": "hqq", "formats": "mxfp4"}, "hqq is not defined for format mxfp4"),
    ],
)
def test_a_wrong_budget_is_one_line_before_anything_is_measured(saved, options, tmp_path, more, says):
    with pytest.raises(OptionError) as raised:
        sensitivity(saved("llama"), tmp_path / "out", **{**options, **more})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_embedding_is_a_part_with_its_own_damage_and_bytes(saved, options, tmp_path):
    """Of a Llama whose head is tied to it: counted once, alone as in `--by part`, and measured by `run` in the plan."""
    out, every = tmp_path / "out", {**options, "include_embedding": True, "quantizers": "rtn"}
    sensitivity(saved("llama"), out, budget="3.6bits", **every)
    (entry,) = json.loads((out / "mixed.json").read_text())["checkpoints"]
    (plan,) = entry["plans"]
    name = "model.embed_tokens"
    assert next(iter(plan["layers"])) == name
    written = json.loads((out / plan["file"]).read_text())
    sizes = {layer: rows * columns for layer, (rows, columns) in written["shapes"].items()}
    bits = {form: Scheme.of(form, 16).effective_bits(16, 16) for form in ("int2", "int3", "int4")}
    mean = sum(sizes[layer] * bits[form] for layer, form in plan["layers"].items()) / sum(sizes.values())
    assert plan["bits_per_weight"] == pytest.approx(mean, rel=0.03)
    assert plan["bits_per_weight"] <= 3.6
    total = LanguageModel.load(saved("llama")).module.num_parameters()
    assert plan["bytes"] == pytest.approx(
        2 * (total - sum(sizes.values())) + plan["bits_per_weight"] * sum(sizes.values()) / 8
    )
    study, _ = sensitivity(saved("llama"), tmp_path / "parts", by="part", **{**options, "quantizers": "rtn"})
    part = {row["bits"]: row for row in study["checkpoints"][0]["rows"] if row["part"] == "embedding and head"}
    (by_layer,) = json.loads((out / "sensitivity.json").read_text())["checkpoints"]
    alone = {(row["layer"], f"int{row['bits']}"): row["kl"] for row in by_layer["rows"]}
    assert name not in {layer for layer, _ in alone}
    others = sum(alone[layer, form] for layer, form in plan["layers"].items() if layer != name)
    own = part[int(plan["layers"][name][3:])]["kl"]
    assert plan["predicted_kl"] == pytest.approx(others + own, rel=1e-5)
    grid = {"bits": 4, "mixed": str(out / plan["file"]), "bootstrap": 10, "write_report": False}
    ptq_eval.run(saved("llama"), tmp_path / "run", **{**every, **grid})
    found = {m.trial.scheme.format if m.trial.scheme else "": m for m in Store(tmp_path / "run").measurements()}
    (mixed,) = [m for name, m in found.items() if name.startswith("mixed-")]
    assert mixed.loss - found[""].loss == pytest.approx(plan["delta"], abs=1e-6)
    with pytest.raises(OptionError, match="with the same --include-head and --include-embedding"):
        ptq_eval.run(saved("llama"), tmp_path / "no", **{**options, **grid, "quantizers": "rtn"})
