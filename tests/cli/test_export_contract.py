"""`ptq-eval export`: what it writes is what was measured, it loads, and what cannot be done is refused in one line."""

import json

import pytest
import torch

from ptq_eval import export
from ptq_eval.errors import ExportError
from ptq_eval.packing import FILE_FORMATS
from ptq_eval.packing.fake import Fake
from ptq_eval.records import Doubt
from ptq_eval.report.common.numbers import short
from tests.cli.support import largest_file, save_checkpoint


@pytest.fixture
def quick(material):
    texts = ("--eval-text", material.evaluation, "--calib-text", material.calibration)
    return (*texts, "--seq-len", "16", "--eval-windows", "8", "--calib-windows", "4", "--group-size", "16")


@pytest.fixture
def checkpoint(material):
    return sorted(material.run.iterdir())[-1]


def recipe(folder):
    return json.loads((folder / "recipe.json").read_text())


@pytest.mark.parametrize(
    ("method", "file_format", "more"),
    [
        ("gptq", "compressed-tensors", ("--bits", "4", "--symmetric")),
        ("rtn", "compressed-tensors", ("--bits", "3", "--symmetric", "--include-head")),
        ("rtn", "fake", ("--number-format", "nvfp4")),
        ("awq", "fake", ("--bits", "2")),
        ("gptq", "gguf", ("--number-format", "q4_0")),
        ("gptq", "compressed-tensors", ("--number-format", "fp8_e4m3")),
        ("rtn", "compressed-tensors", ("--number-format", "mxfp4")),
        ("gptq", "compressed-tensors", ()),  # asymmetric
    ],
)
def test_the_loaded_folder_has_the_loss_that_was_measured(
    ptq_eval, checkpoint, quick, tmp_path, method, file_format, more
):
    out = tmp_path / "out"
    quick = quick[:-2] if {"q4_0", "mxfp4"} & {*more} else quick  # whose blocks have a size of their own
    answer = ptq_eval("export", checkpoint, "-o", out, "--quantizer", method, "--format", file_format, *more, *quick)
    assert answer.code == 0, answer.err
    assert "the same loss" in answer.out
    assert "bit for bit" in answer.out
    found = recipe(out)
    assert found["file"]["loaded"]["loss"] == pytest.approx(found["measured"]["loss_q"], abs=1e-5)
    assert found["measured"]["delta"] != 0
    assert not (tmp_path / "out.partial").exists()
    assert (out / "tokenizer.json").exists()
    card = (out / "README.md").read_text()
    assert "# " in card
    unpacked = file_format == "compressed-tensors" and "--symmetric" not in more
    assert ("quantization_config=CompressedTensorsConfig(dequantize=True)" in card) is unpacked


@pytest.mark.parametrize(
    ("file_format", "more", "least"),
    [
        ("compressed-tensors", ("--symmetric", "--group-size", "16"), 4 + 32 / 16),
        ("gguf", ("--number-format", "q4_0"), 4.5),
        ("fake", ("--number-format", "nvfp4"), 32),
    ],
)
def test_the_card_has_the_bits_of_the_file(ptq_eval, checkpoint, quick, tmp_path, file_format, more, least):
    """Scales in the type of the file; beside them compressed-tensors has the shape of each layer."""
    out = tmp_path / "out"
    few = quick[:-2] if "--number-format" in more or "--group-size" in more else quick
    answer = ptq_eval("export", checkpoint, "-o", out, "--quantizer", "rtn", "--format", file_format, *more, *few)
    assert answer.code == 0, answer.err
    bits = recipe(out)["file"]["bits_per_weight"]
    assert least <= bits < least + 0.2
    assert f"| bits per weight in this file, scales included | {short(bits)} |" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("file_format", "formats"), [("compressed-tensors", ("int2_half", "int4_half")), ("gguf", ("q4_0", "q8_0"))]
)
def test_a_mixed_plan_loads_with_the_loss_that_was_measured(
    ptq_eval, checkpoint, quick, tmp_path, file_format, formats
):
    from ptq_eval.models.language_model import LanguageModel

    names = LanguageModel.blueprint(checkpoint).linears()
    plan = {"group_size": 16, "layers": {name: formats[place % 2] for place, name in enumerate(names)}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out, mixed = tmp_path / "out", ("--quantizer", "rtn", "--mixed", tmp_path / "plan.json")
    answer = ptq_eval("export", checkpoint, "-o", out, *mixed, "--format", file_format, *quick)
    assert answer.code == 0, answer.err
    assert "the same loss" in answer.out
    assert "bit for bit" in answer.out
    assert recipe(out)["scheme"]["layers"] == plan["layers"]
    assert f"layers in {formats[0]}" in (out / "README.md").read_text()
    answer = ptq_eval("export", checkpoint, "-o", tmp_path / "no", *mixed, "--format", "gptq", *quick)
    assert answer.code == ExportError.exit_code
    assert formats[0] in answer.err


def test_the_loss_is_that_of_a_run(ptq_eval, checkpoint, quick, tmp_path):
    import ptq_eval as package

    out = tmp_path / "out"
    answer = ptq_eval("export", checkpoint, "-o", out, "--quantizer", "rtn", "--bits", "3", "--format", "fake", *quick)
    assert answer.code == 0, answer.err
    options = {"eval_text": quick[1], "calib_text": quick[3], "seq_len": 16, "eval_windows": 8, "calib_windows": 4}
    options = {name: str(value) if isinstance(value, type(checkpoint)) else value for name, value in options.items()}
    grid = {"quantizers": ("rtn",), "bits": (3,), "group_size": 16, "bootstrap": 10}
    table = package.run(checkpoint, tmp_path / "run", **grid, **options).table
    row = table[table["quantizer"] == "rtn"].iloc[0]
    assert recipe(out)["measured"]["loss_q"] == row["loss_q"]
    assert recipe(out)["measured"]["delta_se"] == row["delta_se"]


def test_a_folder_that_fake_wrote_can_be_measured_again(ptq_eval, checkpoint, quick, tmp_path):
    out = tmp_path / "out"
    ptq_eval("export", checkpoint, "-o", out, "--quantizer", "rtn", "--bits", "3", "--format", "fake", *quick)
    again = tmp_path / "again"
    ptq_eval("export", out, "-o", again, "--quantizer", "rtn", "--bits", "8", "--format", "fake", *quick)
    assert recipe(again)["measured"]["loss_fp"] == pytest.approx(recipe(out)["measured"]["loss_q"], abs=1e-6)


def test_parts_in_full_precision_keep_the_type_of_the_checkpoint(ptq_eval, material, quick, tmp_path):
    from safetensors.torch import load_file

    save_checkpoint(tmp_path / "run" / "checkpoint-5", material.evaluation.read_text(), dtype=torch.bfloat16)
    out = tmp_path / "out"
    answer = ptq_eval("export", tmp_path / "run" / "checkpoint-5", "-o", out, "--bits", "4", "--symmetric", *quick)
    assert answer.code == 0, answer.err
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float32


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--format", "ggml"), 2, ("unknown file format", "compressed-tensors, gptq, awq, gguf, fake")),
        (("--format", "gguf", "--number-format", "q6_k"), 31, ("gguf cannot hold", "no multiple of its blocks of 256")),
        (("--format", "awq", "--bits", "3"), 31, ("awq cannot hold", "no codes of 3 bits", "--format fake")),
        (("--number-format", "fp6_e2m3"), 31, ("cannot hold", "no type for fp6_e2m3, only for integers")),
        (("--bits", "3,4"), 19, ("--bits is not a whole number", "3,4")),
        (("--bits", "3", "--mixed", "plan.json"), 2, ("--bits and --mixed exclude each other",)),
        (("--mixed", "no.json"), 2, ("the mixed-precision plan cannot be read", "no.json")),
        (("--quantizer", "awq"), 31, ("no place for scales of input channels", "inputs share")),
        (("--quantizer", "gptq", "--option", "gptq.act_order=true"), 31, ("reordered columns", "act_order=false")),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_left(ptq_eval, checkpoint, quick, tmp_path, more, code, said):
    ptq_eval("export", checkpoint, "-o", tmp_path / "out", *quick, *more).refuses(code, *said)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_format_whose_package_is_not_installed_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("ptq_eval.jobs.export.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r'gguf.*not installed.*pip install "ptq-eval\[gguf\]"'):
        export(tmp_path / "nothing", tmp_path / "out", file_format="gguf", formats="q4_0")


def test_a_file_that_holds_other_weights_than_those_measured_is_doubted(checkpoint, quick, tmp_path, monkeypatch):
    class Wrong(Fake):
        def tensors(self, layer, shape):
            return {name: -tensor for name, tensor in super().tensors(layer, shape).items()}

    monkeypatch.setitem(FILE_FORMATS, "fake", Wrong())
    options = {"eval_text": str(quick[1]), "calib_text": str(quick[3]), "eval_windows": 8, "seq_len": 16}
    options |= {"calib_windows": 4, "group_size": 16, "quantizers": "rtn", "bits": 4}
    found = export(checkpoint, tmp_path / "out", file_format="fake", **options)
    (doubt,) = [one for one in found["doubts"] if one["kind"] == Doubt.EXPORT_DIFFERS]
    assert abs(doubt["difference"]) > doubt["limit"]
    assert found["file"]["largest_difference"] > 1
    assert "Doubtful: the exported model has a loss that differs" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_with_something_in_it_is_kept(ptq_eval, checkpoint, quick, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    ptq_eval("export", checkpoint, "-o", tmp_path, *quick).refuses(31, "not empty", "choose another -o")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_run_of_several_checkpoints_is_refused(ptq_eval, material, quick, tmp_path):
    answer = ptq_eval("export", material.run, "-o", tmp_path / "out", *quick)
    answer.refuses(2, "one checkpoint", "name one of its folders")


def test_a_disk_that_fills_leaves_no_half_of_a_model(ptq_eval, checkpoint, quick, tmp_path):
    with largest_file(3000):
        answer = ptq_eval("export", checkpoint, "-o", tmp_path / "out", "--symmetric", *quick)
    answer.refuses(22, "written")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
