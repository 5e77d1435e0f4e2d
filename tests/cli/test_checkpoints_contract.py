"""Contract: whatever is wrong with checkpoints is one line with an exit code of its own, and costs nothing else."""

import json
import os
import pickle

import pandas as pd
import pytest

from tests.cli.support import records, rewrite


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scribble(folder):
    (folder / "model.safetensors").write_bytes(b"not tensors")


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_a_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_config(folder):
    (folder / "config.json").unlink()


def corrupt_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": ')


def senseless_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))


def another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


def unknown_model(folder):
    (folder / "config.json").write_text('{"model_type": "quantumformer"}')


def remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'was-run')!r}, 'w')\n")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def pickle_with_code(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(folder / "was-run")}))


def corrupt_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and nothing more")


def nan(folder):
    rewrite(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"][3].fill_(float("nan")))


def infinity(folder):
    rewrite(folder, lambda tensors: tensors["model.norm.weight"][:1].fill_(float("-inf")))


def lose_a_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))


def lose_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def corrupt_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Oracle"}}')


BROKEN = [
    (truncate, 12, "truncated or corrupt"),
    (scribble, 12, "text ('not tensors')"),
    (empty, 12, "empty (0 bytes)"),
    (lose_weights, 12, "no weight file"),
    (lose_a_shard, 12, "model-00001-of-00002.safetensors"),
    (lose_config, 12, "no config.json"),
    (corrupt_config, 12, "config.json cannot be read"),
    (another_shape, 12, "of another shape"),
    (lose_a_tensor, 12, "model.norm.weight"),
    (corrupt_pickle, 12, "pytorch_model.bin"),
    (pickle_with_code, 13, "was not unpickled"),
    (remote_code, 13, "--trust-remote-code"),
    (nan, 14, "model.layers.0.mlp.up_proj.weight"),
    (infinity, 14, "model.norm.weight"),
    (lose_tokenizer, 15, "tokenizer"),
    (corrupt_tokenizer, 15, "tokenizer"),
    (senseless_config, 23, "wide"),
    (unknown_model, 23, "quantumformer"),
]
CASES = pytest.mark.parametrize(("breaking", "code", "said"), BROKEN, ids=[case[0].__name__ for case in BROKEN])


@CASES
def test_a_single_broken_checkpoint_is_refused(ptq_eval, trajectory, quick, tmp_path, breaking, code, said):
    breaking(trajectory / "checkpoint-200")
    answer = ptq_eval("run", trajectory / "checkpoint-200", "-o", tmp_path / "out", *quick)
    if breaking is lose_weights:
        answer.refuses(11, "no checkpoint")  # nothing says that this folder should be one
    else:
        answer.refuses(code, said)
    assert not (tmp_path / "out").exists()
    assert not (trajectory / "checkpoint-200" / "was-run").exists()


@CASES
def test_inspect_says_the_same(ptq_eval, trajectory, breaking, code, said):
    breaking(trajectory / "checkpoint-200")
    answer = ptq_eval("inspect", trajectory)
    if breaking is lose_tokenizer:
        assert answer.code == 0  # token ids can still be given
        assert "missing_tokenizer" in answer.out
    elif breaking is corrupt_tokenizer:
        assert answer.code == 0  # for the same reason
        assert "unreadable_tokenizer" in answer.out
    else:
        answer.refuses(code, said)
    assert "checkpoint-100" not in answer.err
    assert "200" in answer.out
    assert not (trajectory / "checkpoint-200" / "was-run").exists()


@pytest.mark.parametrize(
    ("breaking", "code"),
    [
        (nan, 14),
        *(
            pytest.param(breaking, code, marks=pytest.mark.slow)
            for breaking, code in ((truncate, 12), (pickle_with_code, 13), (lose_tokenizer, 15), (unknown_model, 23))
        ),
    ],
)
def test_the_good_ones_are_measured_and_reported(ptq_eval, trajectory, quick, tmp_path, breaking, code):
    breaking(trajectory / "checkpoint-200")
    answer = ptq_eval("run", trajectory, "-o", tmp_path / "out", *quick)
    answer.refuses(code, "tiny@200")
    table = pd.read_csv(tmp_path / "out" / "degradation.csv")
    assert table.loc[table["step"] == 200, "status"].tolist() == ["excluded"]
    assert table.loc[table["step"] == 200, "message"].item()
    assert table.loc[table["step"] != 200, "status"].tolist() == ["ok"] * 4
    assert len(records(tmp_path / "out")) == 4
    assert "excluded" in answer.out
    assert "excluded" in (tmp_path / "out" / "report.md").read_text()


def test_several_broken_ones_leave_with_the_code_of_the_first(ptq_eval, trajectory, quick, tmp_path):
    truncate(trajectory / "checkpoint-200")
    nan(trajectory / "checkpoint-300")
    for command in (["inspect"], ["run", "-o", tmp_path / "out", *quick]):
        answer = ptq_eval(*command, trajectory)
        answer.refuses(12, "tiny@200", "and 1 more, listed above")
        assert "model.layers.0.mlp.up_proj.weight" in answer.out
    assert len(records(tmp_path / "out")) == 2


def test_an_error_that_nobody_foresaw_costs_one_checkpoint(ptq_eval, trajectory, quick, tmp_path, monkeypatch):
    from ptq_eval.models.language_model import LanguageModel

    load = LanguageModel.load.__func__

    def fail(cls, folder, **options):
        if folder.name == "checkpoint-200":
            raise ZeroDivisionError("out of the blue")
        return load(cls, folder, **options)

    monkeypatch.setattr(LanguageModel, "load", classmethod(fail))
    answer = ptq_eval("run", trajectory, "-o", tmp_path / "out", *quick)
    answer.refuses(28, "tiny@200", "ZeroDivisionError: out of the blue")
    table = pd.read_csv(tmp_path / "out" / "degradation.csv")
    assert table.loc[table["step"] == 200, "status"].tolist() == ["failed"] * 2
    assert table.loc[table["step"] != 200, "status"].tolist() == ["ok"] * 4
    monkeypatch.undo()
    again = ptq_eval("run", trajectory, "-o", tmp_path / "out", *quick)
    assert (again.code, again.err) == (0, "")
    assert len(records(tmp_path / "out")) == 4 + 2 + 2  # the failures stay on record


def test_an_error_that_nobody_foresaw_while_reading_weights(ptq_eval, trajectory, quick, tmp_path, monkeypatch):
    from ptq_eval.checkpoints import weights

    read = weights.read_weights

    def fail(files):
        if files[0].parent.name == "checkpoint-200":
            raise ZeroDivisionError("out of the blue")
        return read(files)

    monkeypatch.setattr(weights, "read_weights", fail)
    answer = ptq_eval("run", trajectory, "-o", tmp_path / "out", *quick)
    answer.refuses(12, "tiny@200", "out of the blue")
    assert len(records(tmp_path / "out")) == 4


def test_every_checkpoint_broken(ptq_eval, trajectory, quick, tmp_path):
    for folder in trajectory.iterdir():
        nan(folder)
    ptq_eval("run", trajectory, "-o", tmp_path / "out", *quick).refuses(14, "tiny@100")
    assert not (tmp_path / "out").exists()


def test_no_layer_can_be_quantized(ptq_eval, trajectory, quick, tmp_path, monkeypatch):
    from quantizers import QuantizationError
    from quantizers.rtn import RTN

    def fail(self, weights, scheme, stats):
        raise QuantizationError("this matrix cannot be factored")

    monkeypatch.setattr(RTN, "quantize_group", fail)
    answer = ptq_eval("run", trajectory, "-o", tmp_path / "out", *quick)
    answer.refuses(28, "3 of 6 measurements failed", "this matrix cannot be factored", "the others are stored")
    assert len(records(tmp_path / "out")) == 6
