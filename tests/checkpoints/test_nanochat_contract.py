"""nanochat's folders: what is found, what D is, what is excluded, and what damaged files say."""

import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from ptq_eval import errors
from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.checkpoints.nanochat import configuration
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.models.loading import load_tokenizer
from ptq_eval.records import Checkpoint, Trial
from tests.checkpoints.support import nanochat_run


def codes(checkpoint):
    return [problem.code for problem in checkpoint.problems]


def test_steps_and_tokens_are_found(tmp_path):
    nanochat_run(tmp_path / "base_checkpoints" / "d3", "E", steps=(10, 200))
    found = verify_all(discover([tmp_path]))
    assert [(c.run, c.step, c.tokens, c.tokens_source) for c in found] == [
        ("base_checkpoints/d3", 10, 40_960, "derived"),
        ("base_checkpoints/d3", 200, 819_200, "derived"),
    ]
    assert not any(checkpoint.fatal for checkpoint in found)
    assert found[0].stated_bits_per_byte == 2.5
    assert found[0].params == found[1].params > 0


def test_embeddings_of_values_and_gates_are_not_quantized(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "E", steps=(10,))
    (checkpoint,) = discover([folder])
    model = LanguageModel.load(local_path(checkpoint))
    assert len(model.matrices()) == 3 * 6
    reasons = {entry.name: entry.reason for entry in model.excluded}
    assert reasons["value_embeds.2.weight"] == "embedding"
    assert reasons["transformer.h.2.attn.ve_gate.weight"] == reasons["smear_gate.weight"] == "gate"
    assert reasons["lm_head.weight"] == "output head"
    (verified,) = verify_all([checkpoint])
    kept = {"embedding", "output head"}
    assert verified.params == sum(
        p.numel() for name, p in model.module.named_parameters() if reasons.get(name) not in kept
    )


@pytest.mark.parametrize(
    ("meta", "tokens"),
    [
        ({"total_batch_size": 8192}, 81_920),
        ({"user_config": {"total_batch_size": 524288}, "device_batch_size": 4}, 5_242_880),
        ({"user_config": {"total_batch_size": -1}, "device_batch_size": 4}, None),
        ({"user_config": [], "device_batch_size": 4}, None),
        ({"total_batch_size": True, "device_batch_size": 4}, None),
    ],
)
def test_tokens_per_step_have_fallbacks(tmp_path, meta, tokens):
    folder = nanochat_run(tmp_path / "d3", "A", steps=(10,), meta=meta)
    (checkpoint,) = discover([folder])
    assert checkpoint.tokens == tokens


@pytest.mark.parametrize("stage", ["mid_checkpoints", "chatsft_checkpoints", "chatrl_checkpoints"])
def test_what_follows_pretraining_is_excluded_with_the_reason(tmp_path, stage):
    nanochat_run(tmp_path / stage / "d3", "E", steps=(10,))
    nanochat_run(tmp_path / "base_checkpoints" / "d3", "E", steps=(10,))
    found = {c.run: c for c in verify_all(discover([tmp_path]))}
    assert "not_pretraining" in codes(found[f"{stage}/d3"])
    assert not found["base_checkpoints/d3"].fatal


def test_a_meta_file_without_a_batch_is_one_of_fine_tuning(tmp_path):
    folder = nanochat_run(tmp_path / "any" / "d3", "E", steps=(10,), meta={})
    assert codes(discover([folder])[0]) == ["not_pretraining"]


def test_the_phase_of_the_schedule_follows_from_the_options(tmp_path):
    options = {"num_iterations": 100, "warmdown_ratio": 0.4, "warmup_steps": 5}
    meta = {"total_batch_size": 8, "user_config": options}
    folder = nanochat_run(tmp_path / "d3", "A", steps=(4, 5, 60, 61, 100), meta=meta)
    assert [c.schedule_phase for c in discover([folder])] == ["warmup", "constant", "constant", "decay", "annealed"]


def test_names_with_the_prefix_of_compiled_models_load(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "D", steps=(10, 20))
    path = folder / "model_000010.pt"
    torch.save({f"_orig_mod.{name}": value for name, value in torch.load(path).items()}, path)
    found = verify_all(discover([folder]))
    assert not any(checkpoint.fatal for checkpoint in found)


def test_what_was_given_changes_the_key_of_a_trial(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "C", steps=(10,))
    keys = {
        Trial(checkpoint, "corpus", "protocol").key()
        for given in (None, {"architecture": {"softcap": 20}})
        for checkpoint in discover([folder], overrides=given)
    }
    assert len(keys) == 2
    (checkpoint,) = discover([folder], overrides={"architecture": {"softcap": 20}})
    assert Checkpoint.from_dict(json.loads(json.dumps(checkpoint.to_dict()))) == checkpoint


def test_an_architecture_may_not_be_given_for_other_formats(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "A", steps=(10,))
    (checkpoint,) = discover([folder])
    place = local_path(checkpoint)
    with pytest.raises(errors.OptionError, match="single"):
        discover([place], overrides={"architecture": {"softcap": 20}})


@pytest.mark.parametrize("given", [{"sotfcap": 20}, {"era": "Z"}])
def test_unknown_entries_are_refused(tmp_path, given):
    folder = nanochat_run(tmp_path / "d3", "A", steps=(10,))
    (checkpoint,) = verify_all(discover([folder], overrides={"architecture": given}))
    assert checkpoint.fatal


@pytest.mark.parametrize(
    "shapes",
    [
        {"value_embeds.0.weight": (64, 16)},
        {"value_embed.weight": (64, 16)},
        {"transformer.h.0.attn.ve_gate.weight": (2, 16)},
        {"engram.table": (64, 16), "resid_lambdas": (2,)},
    ],
)
def test_versions_that_lasted_for_days_are_refused(shapes):
    sizes = dict.fromkeys(("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"), 2)
    with pytest.raises(errors.UnsupportedModelError, match="hours or days"):
        configuration(shapes, sizes)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("executed",)


def _first_nan(tensors):
    tensors["lm_head.weight"][0, 0] = float("nan")
    return tensors


FILES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "plain pickle": lambda content: pickle.dumps(Bomb()),
}
STATES = {
    "code": lambda tensors: {**tensors, "more": Bomb()},
    "list": lambda tensors: [1, 2],
    "no tensors": lambda tensors: {"step": 10},
    "shape": lambda tensors: {**tensors, "lm_head.weight": torch.zeros(3, 3)},
    "no embedding": lambda tensors: {name: own for name, own in tensors.items() if "wte" not in name},
    "missing tensors": lambda tensors: {name: own for name, own in tensors.items() if "c_fc" not in name},
    "nan": _first_nan,
}
METAS = {
    "torn meta": lambda meta: json.dumps(meta)[:40],
    "meta is a list": lambda meta: "[]",
    "no model_config": lambda meta: json.dumps({**meta, "model_config": None}),
    **{
        f"{name} {value!r}": lambda meta, name=name, value=value: json.dumps(
            {**meta, "model_config": {**meta["model_config"], name: value}}
        )
        for name, value in (
            ("n_layer", 99), ("n_head", 0), ("n_head", "4"), ("n_embd", 24), ("window_pattern", "XY"), ("n_kv_head", 3),
            ("window_pattern", ""), ("vocab_size", 10**9), ("sequence_len", None), ("n_layer", True),
        )
    },
}  # fmt: skip
DAMAGE = [*FILES, *STATES, *METAS, "no meta"]


def damaged(path, how):
    meta = path.with_name("meta_000010.json")
    if how in FILES:
        path.write_bytes(FILES[how](path.read_bytes()))
    elif how in STATES:
        torch.save(STATES[how](torch.load(path)), path)
    elif how in METAS:
        meta.write_text(METAS[how](json.loads(meta.read_text())))
    else:
        meta.unlink()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_executed(tmp_path, capsys, how):
    folder = nanochat_run(tmp_path / "d3", "E", steps=(10, 20))
    damaged(folder / "model_000010.pt", how)
    bad, good = verify_all(discover([folder]))
    assert (bad.step, good.step) == (10, 20)
    assert bad.fatal
    assert not good.fatal
    line = str(bad.fatal[0])
    assert "\n" not in line
    assert "Traceback" not in line
    assert len(line) < 700
    assert "executed" not in capsys.readouterr().out


def encoding(folder, monkeypatch, state=None):
    """A pickle as tiktoken writes it, of a tokenizer that knows bytes and three pairs."""
    module = types.ModuleType("tiktoken.core")

    class Encoding:
        def __getstate__(self):
            return self.state

    Encoding.__module__, Encoding.__qualname__ = "tiktoken.core", "Encoding"
    module.Encoding = Encoding
    monkeypatch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    ranks = {bytes([value]): value for value in range(256)} | {b"th": 256, b"the": 257, b"er": 258}
    one = Encoding()
    one.state = state or {
        "name": "rustbpe", "pat_str": r"\s?\w+|\s", "mergeable_ranks": ranks, "special_tokens": {"<|bos|>": 259},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(one))
    monkeypatch.undo()


def test_the_shared_tokenizer_is_read_without_running_it(tmp_path, monkeypatch):
    encoding(tmp_path / "tokenizer", monkeypatch)
    folder = nanochat_run(tmp_path / "base_checkpoints" / "d3", "E", steps=(10,), vocab=260)
    (checkpoint,) = verify_all(discover([folder]))
    assert not checkpoint.problems
    tokenizer = load_tokenizer(local_path(checkpoint), False, "d3")
    ids = tokenizer("the other", add_special_tokens=False)["input_ids"]
    assert ids == [257, ord(" "), ord("o"), 257, ord("r")]
    assert tokenizer.bos_token_id == 259
    assert tokenizer.decode(ids) == "the other"


@pytest.mark.parametrize("content", ["code", "other", "no ranks", "torn"])
def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, capsys, content):
    if content == "no ranks":
        encoding(tmp_path / "tokenizer", monkeypatch, {"name": "a", "pat_str": ".", "special_tokens": {}})
    else:
        (tmp_path / "tokenizer").mkdir()
        what = {"code": pickle.dumps(Bomb()), "other": pickle.dumps({"a": 1}), "torn": b"\x80\x04"}[content]
        (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(what)
    folder = nanochat_run(tmp_path / "base_checkpoints" / "d3", "E", steps=(10,))
    (checkpoint,) = verify_all(discover([folder]))
    assert "tiktoken" in checkpoint.problems[0].message
    assert "executed" not in capsys.readouterr().out


def test_the_tokenizer_is_tiktokens_to_the_last_token(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from ptq_eval.models.tiktoken import read_encoding, tokenizer_files

    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    trained = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    text = Path(pickle.__file__).read_text(encoding="utf-8")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator([text], trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet))
    values = {letter: value for value, letter in bytes_to_unicode().items()}
    vocabulary = json.loads(trained.to_str())["model"]["vocab"]
    ranks = {bytes(values[letter] for letter in token): rank for token, rank in vocabulary.items()}
    original = tiktoken.Encoding("a", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|bos|>": len(ranks)})
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(original))
    own = Tokenizer.from_str(tokenizer_files(read_encoding(tmp_path / "tokenizer.pkl"), "<|bos|>")["tokenizer.json"])
    others = ["naïve café 12345 …\n\n\t  x", "日本語のテキスト 🙂🙃", "\r\n \r\n", "a" * 300, "don't WE'LL", "\x00\x7f"]
    for sample in (text, json.__doc__, *others):
        assert own.encode(sample, add_special_tokens=False).ids == original.encode_ordinary(sample)
