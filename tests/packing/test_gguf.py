"""GGUF files: read by the package's own tables and by transformers, they are the model that was measured."""

import errno
import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from ptq_eval.models.refusal import Obstacle
from ptq_eval.packing import FILE_FORMATS, Shape
from ptq_eval.packing.base import Content
from ptq_eval.packing.folder import largest_difference
from ptq_eval.packing.gguf import BLOCKS, FILE
from ptq_eval.report.export.words import reason
from quantizers import Scheme, get_quantizer
from tests.support import models

FORMAT = FILE_FORMATS["gguf"]
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": None}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True, rope_theta=500.0),
    "mistral": MistralConfig(**SIZES, head_dim=32, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=128, tie_word_embeddings=False),
}


def content_of(model, source, scheme):
    """A model whose linear layers are rounded in place, and what is to be written of it."""
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    layers, shapes = {}, {}
    for name in names:
        weight = model.get_submodule(name).weight
        layers[name] = get_quantizer("rtn").quantize(weight.data, scheme)
        shapes[name] = Shape(*weight.shape)
        weight.data = layers[name].dequantize()
    model.save_pretrained(source)
    packed = {f"{name}.weight" for name in names}
    dense = {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in packed}
    return Content(source, layers, dense, shapes, json.loads((source / "config.json").read_text()), ["lm_head"])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_type_is_read_back_bit_for_bit(tmp_path, name):
    content = content_of(models.build(FAMILIES["llama"]), tmp_path / "source", Scheme.of(name))
    assert FORMAT.refusal_of_model(content.config) is None
    assert FORMAT.refusal(Scheme.of(name), content.shapes["model.layers.0.self_attn.q_proj"]) is None
    FORMAT.write(tmp_path / "out", content)
    assert largest_difference(tmp_path / "out", FORMAT, content) == 0
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / FILE).tensors}
    assert kinds["blk.0.ffn_down.weight"] == name.upper()
    assert kinds["blk.0.attn_norm.weight"] == kinds["token_embd.weight"] == "F32"
    assert "output.weight" not in kinds


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_file_as_the_same_model(tmp_path, family):
    model = models.build(FAMILIES[family])
    FORMAT.write(tmp_path / "out", content_of(model, tmp_path / "source", Scheme.of("q8_0")))
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=FILE, dtype=torch.float32).eval()
    ids = torch.arange(48)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_what_is_not_quantized_keeps_the_type_of_the_checkpoint(tmp_path, dtype, kind):
    model = models.build(FAMILIES["qwen2"]).to(dtype)
    content = content_of(model, tmp_path / "source", Scheme.of("q8_0"))
    FORMAT.write(tmp_path / "out", content)
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "out" / FILE).tensors}
    assert found["output.weight"].tensor_type.name == kind
    assert found["blk.0.attn_q.bias"].tensor_type.name == "F32"
    read = gguf.quants.dequantize(found["output.weight"].data, found["output.weight"].tensor_type)
    np.testing.assert_array_equal(read, model.lm_head.weight.detach().float().numpy())


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"model_type": "gpt2"}, Obstacle.ARCHITECTURE, "only llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, Obstacle.ACTIVATION, "'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, Obstacle.ROTARY_EMBEDDING, "'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Obstacle.ROTARY_EMBEDDING, "'linear'"),
        ({"sliding_window": 32}, Obstacle.SLIDING_WINDOW, "window of 32 tokens"),
    ],
)
def test_models_that_would_be_read_as_others_are_refused(changes, kind, said):
    config = {"model_type": "llama", "max_position_embeddings": 64, "rope_parameters": {"rope_type": "default"}}
    assert FORMAT.refusal_of_model(config) is None
    if "rope_scaling" in changes:
        del config["rope_parameters"]
    found = FORMAT.refusal_of_model({**config, **changes})
    assert found.kind is kind
    assert said in reason(found)


@pytest.mark.parametrize(
    ("scheme", "shape", "said"),
    [
        (Scheme(4, 32), Shape(64, 64), "no type for int4"),
        (Scheme.of("nvfp4"), Shape(64, 64), "no type for nvfp4, only for q4_0"),
        (Scheme.of("q4_k"), Shape(64, 704), "704 weights is no multiple of its blocks of 256"),
        (Scheme.of("q4_0"), Shape(64, 64, transposed=True), "Conv1D"),
    ],
)
def test_layers_that_do_not_fit_are_refused(scheme, shape, said):
    assert said in reason(FORMAT.refusal(scheme, shape))


@pytest.mark.parametrize("error", [OSError("65536 requested and 0 written"), OSError(errno.ENOSPC, "full")])
def test_a_disk_that_fills_is_reported_as_such(tmp_path, monkeypatch, error):
    content = content_of(models.build(FAMILIES["llama"]), tmp_path / "source", Scheme.of("q8_0"))

    def full(*_, **__):
        raise error

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match=r"No space left|full") as found:
        FORMAT.write(tmp_path / "out", content)
    assert found.value.errno == errno.ENOSPC


def tokenizer_of(folder, expression=None):
    """What a file says of the tokenizer in `folder`; `expression` splits texts before BPE."""
    content = json.loads((folder / "tokenizer.json").read_text())
    if expression is not None:
        split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        parts = [split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    FORMAT.write(folder.parent / "out", content_of(models.build(FAMILIES["llama"]), folder, Scheme.of("q4_0")))
    fields = gguf.GGUFReader(folder.parent / "out" / FILE).fields
    return {name.removeprefix("tokenizer.ggml."): f.contents() for name, f in fields.items() if "tokenizer" in name}


LLAMA_3 = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
QWEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


@pytest.mark.parametrize(("expression", "name"), [(None, "gpt-2"), (LLAMA_3, "llama-bpe"), (QWEN, "qwen2")])
def test_byte_pairs_and_how_texts_are_split_are_in_the_file(tmp_path, expression, name):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat sat on the mat"] * 3, vocab_size=280, special_tokens=["<end>"])
    (tmp_path / "source").mkdir()
    trained.save(str(tmp_path / "source" / "tokenizer.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "vocab_size", 300)
        patch.setitem(FAMILIES, "llama", LlamaConfig(**SIZES))
        found = tokenizer_of(tmp_path / "source", expression)
    assert found["model"] == "gpt2"
    assert found["pre"] == name
    assert found["tokens"][0] == "<end>"
    assert found["token_type"][0] == gguf.TokenType.CONTROL
    assert found["token_type"][299] == gguf.TokenType.UNUSED
    assert len(found["tokens"]) == 300
    assert "h e" in found["merges"]


def test_a_tokenizer_of_another_kind_leaves_a_file_that_takes_token_ids(tmp_path):
    (tmp_path / "source").mkdir()
    Tokenizer(WordLevel({f"t{i}": i for i in range(64)}, unk_token="t0")).save(str(tmp_path / "source/tokenizer.json"))
    assert tokenizer_of(tmp_path / "source") == {"model": "no_vocab"}
