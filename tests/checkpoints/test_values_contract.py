"""Contract: weights that no training leaves, and the same weights twice, are known by their values."""

import re

import pytest
import torch
import transformers as t

from ptq_eval.checkpoints import Overrides, discover, error_for, verify, verify_all, warnings
from tests.checkpoints.support import codes, llama_config, one, only_problem, rewrite


@pytest.fixture
def folder(save, tmp_path):
    save(tmp_path / "m", config=llama_config(tie_word_embeddings=False))
    return tmp_path / "m"


CONSTANT = {
    "zero": lambda n, x: x * 0,
    "zero of both signs": lambda n, x: torch.where(x > 0, 0.0, -0.0),
    "one value": lambda n, x: torch.full_like(x, 0.02),
    "matrices": lambda n, x: x * 0 if x.dim() > 1 else x,
    "all but the embedding": lambda n, x: x * 0 if "layers" in n else x,
    "the embedding": lambda n, x: x * 0 if "embed" in n else x,
    "bfloat16": lambda n, x: (x * 0).bfloat16(),
    "half": lambda n, x: (x * 0).half(),
}


@pytest.mark.parametrize("kind", CONSTANT)
def test_weights_of_one_value_are_no_weights(folder, kind):
    rewrite(folder, lambda tensors: {n: CONSTANT[kind](n, x) for n, x in tensors.items()})
    problem, error = only_problem(folder)
    assert (problem.code, error.exit_code) == ("constant_weights", 14)
    assert "hold a single value" in problem.message


def test_norms_of_zero(save, tmp_path):
    """They let nothing through, unless a norm multiplies by 1 + weight; the last of a layer may begin at zero."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 48,
             "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
    configs = {
        "llama": llama_config(),
        "gpt2": t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=48, n_positions=16),
        "gemma": t.GemmaConfig(**small, head_dim=8),
        "olmo2": t.Olmo2Config(**small),
    }

    def judged(kind, pattern):
        save(tmp_path / kind, config=configs[kind])
        rewrite(tmp_path / kind, lambda ts: {n: x * 0 if re.search(pattern, n) else x for n, x in ts.items()})
        return [(p.code, p.fatal) for p in verify(discover([tmp_path / kind])[0]).problems]

    every = r"(norm|layernorm|ln_\w+)\.weight"
    assert judged("llama", every) == judged("gpt2", every) == judged("olmo2", every) == [("constant_weights", True)]
    assert judged("gemma", every) == []
    assert judged("llama", r"^model\.norm") == judged("gpt2", r"ln_f\.weight") == [("constant_weights", True)]
    assert judged("olmo2", "post_feedforward") == judged("gpt2", r"0\.ln_1\.weight") == [("constant_weights", False)]


def test_weights_that_are_not_finite_are_not_called_constant(folder):
    rewrite(folder, lambda tensors: {n: x * float("nan") for n, x in tensors.items()})
    assert only_problem(folder)[0].code == "nan_or_inf"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8])
def test_a_whole_model_of_integers_is_quantized(folder, dtype):
    rewrite(folder, lambda tensors: {n: (x * 100).to(dtype) for n, x in tensors.items()})
    assert only_problem(folder)[0].code == "already_quantized"


def test_weights_of_booleans(folder):
    rewrite(folder, lambda tensors: {n: x > 0 if "_proj" in n else x for n, x in tensors.items()})
    assert only_problem(folder)[0].code == "already_quantized"


def test_a_new_model_whose_output_projections_are_zero_is_measured(folder):
    rewrite(folder, lambda ts: {n: x * 0 if "o_proj" in n or "down_proj" in n else x for n, x in ts.items()})
    found = verify(discover([folder])[0])
    assert [(p.code, p.fatal) for p in found.problems] == [("constant_weights", False)]


def test_weights_of_two_values_and_vectors_of_one_are_measured(folder):
    rewrite(folder, lambda ts: {n: x.sign() * 0.02 if x.dim() > 1 else torch.ones_like(x) for n, x in ts.items()})
    found = verify(discover([folder])[0])
    assert [(p.code, p.fatal) for p in found.problems] == [("coarse_weights", False)]


@pytest.mark.parametrize("kind", ["another", "trained on", "the same", "the same in another type"])
def test_a_head_that_differs_from_the_embedding_it_is_tied_to(save, tmp_path, kind):
    save(tmp_path / "m", config=llama_config(tie_word_embeddings=True))

    def change(tensors):
        table = tensors["model.embed_tokens.weight"]
        heads = {"another": torch.randn_like(table) * 0.02, "trained on": table * 1.001, "the same": table.clone()}
        tensors["lm_head.weight"] = heads.get(kind, table.bfloat16())

    rewrite(tmp_path / "m", change)
    found = verify(discover([tmp_path / "m"])[0])
    assert codes(found) == ([] if kind.startswith("the same") else ["untied_head"])
    assert not found.fatal


SAME = {
    "a prefix": lambda ts: {n.removeprefix("model."): x for n, x in ts.items()},
    "a surplus tensor": lambda ts: {**ts, "value_head.weight": torch.ones(2, 2)},
    "a counter": lambda ts: {**ts, "model.num_batches_tracked": torch.tensor(7)},
    "a buffer": lambda ts: {**ts, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "the tied head": lambda ts: {**ts, "lm_head.weight": ts["model.embed_tokens.weight"].clone()},
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("runs", [("r", "r"), ("a", "b")])
def test_the_same_weights_in_another_file_are_the_same(save, tmp_path, kind, runs):
    for step, run in enumerate(runs, 1):
        save(tmp_path / run / f"step{step}", seed=1)
    rewrite(tmp_path / runs[1] / "step2", SAME[kind])
    first, second = verify_all(discover([tmp_path]))
    assert first.weights_sha != second.weights_sha
    code = "identical_weights" if runs == ("r", "r") else "near_identical"
    (problem,) = (p for p in second.problems if p.code == code)
    assert "the same weights as" in problem.message
    assert problem.fatal == (code == "identical_weights")


def test_one_changed_entry_is_another_model(save, tmp_path):
    for step in (1, 2):
        save(tmp_path / "r" / f"step{step}", seed=1)
    rewrite(tmp_path / "r" / "step2", lambda ts: ts["model.norm.weight"].__setitem__(3, 1.5))
    assert not verify_all(discover([tmp_path]))[1].fatal


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf(save, tmp_path, value):
    save(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t["model.norm.weight"].__setitem__(3, value))
    (problem,) = one(tmp_path / "m").problems
    assert (problem.code, problem.fatal) == ("nan_or_inf", True)
    assert "model.norm.weight" in problem.message


def test_weights_beyond_half_precision_are_measured_with_a_warning(save, tmp_path):
    save(tmp_path / "r" / "step1")
    rewrite(tmp_path / "r" / "step1", lambda tensors: tensors[min(tensors)].mul_(1e8))
    found = verify_all(discover([tmp_path / "r"], overrides=Overrides(tokens_per_step=50)))
    assert codes(found[0]) == ["large_weights"]
    assert not found[0].fatal
    assert "beyond the range of float16" in warnings(found)[0]


@pytest.mark.filterwarnings("error")
def test_absurdly_large_weights_are_refused_without_a_warning_of_numpy(save, tmp_path):
    for step in (1, 2):
        save(tmp_path / "r" / f"step{step}", seed=step)

        def blow_up(tensors):
            name = next(name for name in tensors if "q_proj" in name)
            tensors[name] *= 1e30

        rewrite(tmp_path / "r" / f"step{step}", blow_up)
    first, _ = verify_all(discover([tmp_path / "r"]))
    assert codes(first) == ["huge_weights"]
    assert "q_proj" in first.problems[0].message
    assert error_for(first, first.problems[0]).exit_code == 14


def test_complex_weights_are_refused(save, tmp_path):
    import torch

    save(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t.update({n: x.to(torch.complex64) for n, x in t.items() if "q_proj" in n}))
    assert "complex numbers" in one(tmp_path / "m").fatal[0].message
