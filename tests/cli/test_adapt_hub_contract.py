"""Contract of `ptq-eval adapt hub:…`: a GPT-2 as DialoGPT is published, and a Llama, from a hub on this machine."""

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from tests.cli.support import save_checkpoint, tokenizer
from tests.cli.test_adapt_contract import FLAGS

DIALOGPT, LLAMA = "microsoft/DialoGPT-medium", "meta-llama/Llama-3.2-1B"


def save_dialogpt(folder, text):
    """Its files: a pickle in half precision with the masks of old versions, vocabulary and merges, no pad token."""
    config = GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        n_ctx=32,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPT2LMHeadModel"],
        task_specific_params={"conversational": {"max_length": 1000}},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir()
    config.save_pretrained(folder)
    state = {name: value.half() for name, value in model.state_dict().items()}
    for layer in range(config.n_layer):
        mask = torch.ones(32, 32, dtype=torch.uint8).tril()[None, None]
        state |= {f"transformer.h.{layer}.attn.bias": mask}
        state |= {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4).half()}
    torch.save(state, folder / "pytorch_model.bin")
    own = json.loads(tokenizer(text).backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(own["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in own["merges"])]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))


@pytest.fixture
def published(hub, material, tmp_path):
    """The hub with both models."""
    text = material.evaluation.read_text()
    save_dialogpt(tmp_path / "dialogpt", text)
    save_checkpoint(tmp_path / "llama", text, tie_word_embeddings=False)
    hub.add(DIALOGPT, "main", tmp_path / "dialogpt")
    hub.add(LLAMA, "main", tmp_path / "llama")
    return hub


@pytest.mark.parametrize("model", [DIALOGPT, LLAMA])
def test_a_model_of_the_hub_is_adapted(published, ptq_eval, material, quick, tmp_path, model):
    few = [one for one in quick if one not in ("--bootstrap", "10")]
    options = ("--train-text", material.calibration, "--bits", "3", "--seeds", "0", "--group-size", "16")
    answer = ptq_eval("adapt", f"hub:{model}", "-o", tmp_path / "out", *few, *FLAGS, *options)
    assert (answer.code, answer.err) == (0, "")
    table = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("bits")
    assert (table["loss"] < table["loss_before"]).all()
    assert table.loc[3, "delta_before"] != 0
    layers = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert len(layers) == (8 if model == DIALOGPT else 7)
    assert layers["residual_share"].between(0, 1).all()
    assert json.loads((tmp_path / "out" / "metrics_3_0.json").read_text())["layers_skipped"] == {}
