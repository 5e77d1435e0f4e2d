"""Contract: files of tensors alone are read with a configuration that is given, whatever their names and wrappings."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.errors import OptionError, UnsupportedModelError
from ptq_eval.models.language_model import LanguageModel
from tests.checkpoints.support import write_tokenizer
from tests.support.frameworks import VOCABULARY

IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=VOCABULARY),
    "gpt_neox": GPTNeoXConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=VOCABULARY,
        max_position_embeddings=64, tie_word_embeddings=False,
    ),
    "llama": LlamaConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=VOCABULARY, max_position_embeddings=64,
    ),
}  # fmt: skip
_META = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_FAIRSEQ2 = {
    "model.embed_tokens": "decoder_frontend.embed", "model.norm": "decoder.layer_norm", "lm_head": "final_proj",
    "model.layers": "decoder.layers", "self_attn.o_proj": "self_attn.output_proj", "mlp.gate_proj": "ffn.gate_proj",
    "mlp.down_proj": "ffn.output_proj", "mlp.up_proj": "ffn.inner_proj", "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "ffn_layer_norm",
}  # fmt: skip


def model_of(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn(parameter.shape))
    return model


def named(tensors, names):
    """Under other names, with the rows of queries and keys ordered for a RoPE of neighbours."""
    found = {}
    for name, own in tensors.items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        new = name
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        found[new] = own.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else own
    return found


WAYS = {
    "plain": lambda tensors: tensors,
    "beside an optimizer": lambda tensors: {"model": tensors, "optimizer": {"state": {}, "param_groups": []}},
    "beside an average": lambda tensors: {"ema": dict(tensors), "state_dict": tensors, "step": 7},
    "data parallel": lambda tensors: {f"module.{name}": own for name, own in tensors.items()},
    "compiled": lambda tensors: {"module": {f"_orig_mod.{name}": own for name, own in tensors.items()}},
    "lightning": lambda tensors: {"state_dict": {f"model.net.{n}": own for n, own in tensors.items()}, "epoch": 1},
    "without its body's prefix": lambda tensors: {
        n.removeprefix("model.").removeprefix("transformer.").removeprefix("gpt_neox."): own
        for n, own in tensors.items()
    },
}
CASES = [(kind, way, WAYS[way]) for kind in CONFIGS for way in WAYS] + [
    ("llama", "Meta", lambda tensors: {**named(tensors, _META), "rope.freqs": torch.ones(4)}),
    ("llama", "fairseq2", lambda tensors: named(tensors, _FAIRSEQ2)),
    (
        "gpt2",
        "linear layers",
        lambda tensors: {
            name: own.T.contiguous() if own.dim() == 2 and ".h." in name else own for name, own in tensors.items()
        },
    ),
]


@pytest.mark.parametrize(("kind", "way", "change"), CASES, ids=[f"{kind}, {way}" for kind, way, _ in CASES])
def test_the_loss_is_that_of_transformers(tmp_path, kind, way, change):
    model = model_of(kind)
    (tmp_path / "run").mkdir()
    torch.save(change(model.state_dict()), tmp_path / "run" / "model_step250.pt")
    given = {"architecture": CONFIGS[kind].to_dict()}
    (checkpoint,) = verify_all(discover([tmp_path / "run"], overrides=given))
    assert not checkpoint.fatal, checkpoint.fatal
    assert (checkpoint.run, checkpoint.step, checkpoint.format) == ("run", 250, "state_dict")
    found, known = LanguageModel.load(local_path(checkpoint)).logits(IDS), model(IDS).logits
    assert (found - known).abs().max() < 1e-5 * known.abs().max()


@pytest.fixture
def run(tmp_path):
    """Two steps of a Llama in folders as fairseq2 has them, with what it stores beside them."""
    for seed, step in enumerate((100, 1000)):
        torch.manual_seed(seed)
        tensors = named(AutoModelForCausalLM.from_config(CONFIGS["llama"]).state_dict(), _FAIRSEQ2)
        place = tmp_path / "run" / f"step_{step}"
        for part in ("model", "optimizer"):
            (place / part / "pp_00" / "tp_00").mkdir(parents=True)
            torch.save(tensors, place / part / "pp_00" / "tp_00" / "sdp_00.pt")
        (place / "trainer").mkdir()
        torch.save({}, place / "trainer" / "rank_00.pt")
    CONFIGS["llama"].save_pretrained(tmp_path / "config")
    write_tokenizer(tmp_path / "run")
    return tmp_path / "run"


def test_folders_of_fairseq2_with_their_tokenizer(run):
    found = verify_all(discover([run], overrides={"architecture": run.parent / "config" / "config.json"}))
    assert [(c.run, c.step, c.fatal, bool(c.tokenizer_sha)) for c in found] == [
        ("run", 100, (), True),
        ("run", 1000, (), True),
    ]
    assert [c.tokens for c in discover([run], overrides={"architecture": "llama", "tokens_per_step": 64})] == [
        6400,
        64_000,
    ]


def test_tokens_per_step_say_that_the_number_of_a_file_is_the_step(run):
    place = run.parent / "files"
    place.mkdir()
    for step in (100, 1000):
        (run / f"step_{step}" / "model" / "pp_00" / "tp_00" / "sdp_00.pt").rename(place / f"gs{step}.pt")
    assert [c.step for c in discover([place], overrides={"architecture": "llama"})] == [None, None]
    found = discover([place], overrides={"architecture": "llama", "tokens_per_step": 64})
    assert [(c.run, c.step, c.tokens) for c in found] == [("files", 100, 6400), ("files", 1000, 64_000)]


def test_the_configuration_may_be_in_a_trajectory_yaml(run):
    (run / "trajectory.yaml").write_text("architecture: ../config/config.json\ntokens_per_step: 2M\n")
    found = verify_all(discover([run]))
    assert [(c.tokens, c.fatal) for c in found] == [(200_000_000, ()), (2_000_000_000, ())]
    nested = json.dumps({**CONFIGS["llama"].to_dict(), "hidden_size": "32"})  # YAML leaves numbers as text
    (run / "trajectory.yaml").write_text(f"architecture: {nested}\n")
    assert not any(c.fatal for c in verify_all(discover([run])))


def test_without_a_configuration_the_message_asks_for_it(run):
    with pytest.raises(UnsupportedModelError, match=r"fairseq2.*--architecture CONFIG"):
        discover([run])
    torch.save({"a": torch.ones(2)}, run.parent / "config" / "ckpt_5.pt")  # a name that nanoGPT has too
    (checkpoint,) = verify_all([c for c in discover([run.parent / "config"]) if c.format == "nanogpt"])
    assert "--architecture CONFIG" in str(checkpoint.fatal[0])


def test_a_last_model_and_a_step_that_the_file_says(tmp_path):
    model = model_of("gpt2")
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    torch.save({"model": model.state_dict(), "iteration": 70}, run / "final" / "weights.pth")
    save_file({n: own.clone() for n, own in model.state_dict().items()}, run / "step-50.safetensors")
    found = discover([run], overrides={"architecture": CONFIGS["gpt2"].to_dict()})
    assert [(c.run, c.step) for c in found] == [("run", 50), ("run", 70)]


@pytest.mark.parametrize(
    "names",
    [
        ("ckpt_100", "ckpt_200"),
        ("100", "200"),
        ("model-step100", "model-step200"),
        ("epoch=1-step=100", "epoch=2-step=200"),
    ],
)
def test_files_that_differ_in_a_number_are_steps(tmp_path, names):
    for name in names:
        torch.save({"a": torch.ones(2)}, tmp_path / f"{name}.pt")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    found = discover([tmp_path], overrides={"architecture": "gpt2", "tokens_per_step": 64})
    assert [(c.run, c.step, c.tokens) for c in found] == [(tmp_path.name, 100, 6400), (tmp_path.name, 200, 12_800)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("missing.json", "names no file"),
        ("{", "cannot be read"),
        (["llama"], "not a mapping"),
        ("Not A Type", "names no file"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, value, text):
    with pytest.raises(OptionError, match=text) as caught:
        discover([tmp_path], overrides={"architecture": value})
    assert "\n" not in str(caught.value)


def test_another_model_and_an_unknown_type_are_named(tmp_path):
    (tmp_path / "run").mkdir()
    torch.save(model_of("gpt2").state_dict(), tmp_path / "run" / "step_1.pt")
    for given, text in (
        (CONFIGS["llama"].to_dict(), "not called as those of llama"),
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({**CONFIGS["gpt2"].to_dict(), "n_embd": 64}, "transformer.h.0"),
    ):
        (checkpoint,) = verify_all(discover([tmp_path / "run"], overrides={"architecture": given}))
        (problem,) = checkpoint.fatal
        assert text in str(problem)
        assert "\n" not in str(problem)


def test_shards_are_not_taken_for_a_model(run):
    place = run / "step_100" / "model" / "pp_00" / "tp_00"
    torch.save({"a": torch.ones(2)}, place / "sdp_01.pt")
    found = verify_all(discover([run], overrides={"architecture": CONFIGS["llama"].to_dict()}))
    (problem,) = found[0].fatal
    assert "several files" in str(problem)
    assert not found[1].fatal


SAVES = {
    "safetensors": lambda tensors, path: save_file({n: own.clone() for n, own in tensors.items()}, path),
    "bin": torch.save,
    "pt": lambda tensors, path: torch.save({"model": tensors, "step": 7}, path),
}


def in_parts(folder, tensors, kind, count=3):
    """The tensors in files `model-0000I-of-0000N`, every count-th in each."""
    folder.mkdir(parents=True)
    for place in range(count):
        names = list(tensors)[place::count]
        SAVES[kind]({name: tensors[name] for name in names}, folder / f"model-{place + 1:05d}-of-{count:05d}.{kind}")


@pytest.mark.parametrize("kind", SAVES)
def test_parts_that_are_numbered_are_one_state_dict(tmp_path, kind):
    model, given = model_of("llama"), {"architecture": CONFIGS["llama"].to_dict()}
    in_parts(tmp_path / "run" / "step_100", model.state_dict(), kind)
    for root in (tmp_path / "run", tmp_path / "run" / "step_100"):
        (found,) = verify_all(discover([root], overrides=given))
        assert not found.fatal
        logits = LanguageModel.load(local_path(found)).logits(IDS)
        assert (logits - (known := model(IDS).logits)).abs().max() < 1e-5 * known.abs().max()


def test_a_part_that_is_missing_or_repeats_a_tensor_is_one_line(tmp_path):
    tensors = model_of("llama").state_dict()
    in_parts(tmp_path / "run" / "step_100", tensors, "bin")
    (tmp_path / "run" / "step_100" / "model-00002-of-00003.bin").unlink()
    in_parts(tmp_path / "run" / "step_1000", tensors, "bin")
    torch.save(tensors, tmp_path / "run" / "step_1000" / "model-00002-of-00003.bin")
    found = verify_all(discover([tmp_path / "run"], overrides={"architecture": CONFIGS["llama"].to_dict()}))
    lines = [str(problem) for c in found for problem in c.fatal]
    assert len(lines) == 2
    assert "2 of the 3 parts of model.bin are there" in lines[0]
    assert "in several parts" in lines[1]


def test_files_that_are_not_one_model_are_one_line(tmp_path):
    tensors = model_of("llama").state_dict()
    (tmp_path / "run" / "step_100").mkdir(parents=True)
    for place in range(2):
        torch.save(dict(list(tensors.items())[place::2]), tmp_path / "run" / "step_100" / f"part_{place}.pt")
    (found,) = verify_all(discover([tmp_path / "run"], overrides={"architecture": CONFIGS["llama"].to_dict()}))
    (problem,) = found.fatal
    assert "several files" in str(problem)
