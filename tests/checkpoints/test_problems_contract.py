"""Contract, oracle and property: what is said between checkpoints, and how far apart weights are."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ptq_eval.checkpoints import discover, error_for, foremost, gravest, verify_all, warnings
from ptq_eval.checkpoints.weights import Sampler, read_weights, sketch_of
from ptq_eval.records import Checkpoint
from tests.checkpoints.support import codes


def moved(folder, share, seed=0):
    """Move the weights in `folder` by `share` of their length, in a random direction."""
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    length = sum(tensor.square().sum() for tensor in tensors.values()) ** 0.5
    size = sum(tensor.square().sum() for tensor in noise.values()) ** 0.5
    tensors = {name: tensor + share * length / size * noise[name] for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def near(checkpoint):
    return [problem.message for problem in checkpoint.problems if problem.code == "near_identical"]


def failed(**codes):
    """An excluded checkpoint per name, with problems of these codes."""
    checkpoints = []
    for step, (name, own) in enumerate(codes.items()):
        checkpoint = Checkpoint(name, step, None, None)
        for code in own.split():
            checkpoint = checkpoint.with_problem(code, f"its {code}", fatal=True)
        checkpoints.append(checkpoint)
    return [gravest(checkpoint) for checkpoint in checkpoints]


@pytest.mark.parametrize(
    ("codes", "code", "exit_code"),
    [
        ({"a": "step_disagrees nan_or_inf"}, "nan_or_inf", 14),
        ({"a": "step_disagrees", "b": "unreadable", "c": "unreadable"}, "unreadable", 12),
        ({"a": "step_disagrees", "b": "unreadable"}, "unreadable", 12),
        ({"a": "unreadable", "b": "steps_out_of_order", "c": "step_disagrees"}, "steps_out_of_order", 26),
        ({"a": "tokenizer_differs", "b": "nan_or_inf", "c": "missing_shard"}, "missing_shard", 12),
    ],
)
def test_the_last_line_is_of_what_most_suffer_from_and_of_the_gravest(codes, code, exit_code):
    for order in (1, -1):
        error = foremost(failed(**dict(list(codes.items())[::order])), "listed above")
        assert error.exit_code == exit_code
        assert ("and " in str(error)) == (len(codes) > 1)
    error = foremost(failed(**codes), "listed above")
    assert f"its {code}" in str(error)


@pytest.mark.parametrize(("share", "named"), [(0.003, True), (0.009, True), (0.012, False), (0.5, False)])
def test_near_identical_steps_are_named_with_their_distance(save, tmp_path, share, named):
    for step in (1, 2):
        save(tmp_path / "r" / f"step{step}", seed=1)
    moved(tmp_path / "r" / "step2", share)
    first, second = verify_all(discover([tmp_path / "r"]))
    assert near(first) == []
    assert bool(near(second)) == named
    assert not second.fatal
    if named:
        assert "r@1" in near(second)[0]
        said = float(near(second)[0].partition("relative distance ")[2].partition(",")[0])
        assert said == pytest.approx(share, rel=0.15)


def test_two_runs_that_share_weights_are_named(save, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "step1", seed=1)
        save(tmp_path / name / "step2", seed=2 if name == "a" else 3)
    found = verify_all(discover([tmp_path]))
    assert [len(near(checkpoint)) for checkpoint in found] == [0, 0, 1, 0]
    assert "a@1" in near(found[2])[0]
    assert "the same weights as a@1, bit for bit" in near(found[2])[0]
    assert "relative distance" not in near(found[2])[0]
    assert "not independent" in near(found[2])[0]
    assert not found[2].fatal


def test_the_same_weights_in_another_type_are_near(save, tmp_path):
    save(tmp_path / "a" / "step1", seed=1)
    save(tmp_path / "b" / "step1", seed=1, dtype=torch.bfloat16)
    assert near(verify_all(discover([tmp_path]))[1])


def test_identical_steps_of_a_run_are_said_to_be_identical_only(save, tmp_path):
    for step in (1, 2):
        save(tmp_path / "r" / f"step{step}", seed=1)
    assert "identical_weights" in codes(verify_all(discover([tmp_path / "r"]))[1])
    assert near(verify_all(discover([tmp_path / "r"]))[1]) == []


def test_a_step_that_is_excluded_for_itself_takes_no_other_with_it(save, tmp_path):
    """The second has the same weights, and all else that the first one lacks."""
    for step in (1, 2):
        save(tmp_path / "r" / f"step{step}", seed=1)
    (tmp_path / "r" / "step1" / "config.json").write_text("{")
    first, second = verify_all(discover([tmp_path / "r"]))
    assert first.fatal
    assert not second.fatal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_sketch_estimates_the_distance(tmp_path, dtype):
    """Oracle: the distance of all weights, of tensors whose sizes and spreads differ a thousandfold."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (600, 500), "b": (70, 90), "c": (5,), "d": (1,)}
    one = {n: (k + 0.1) * torch.randn(s, generator=generator) for k, (n, s) in enumerate(shapes.items())}
    two = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in one.items()}
    sketches = []
    for name, tensors in (("one", one), ("two", two)):
        file = tmp_path / f"{name}.safetensors"
        save_file({n: t.to(dtype) for n, t in tensors.items()}, file)
        sketches.append(read_weights((file,)).sketch({name: name for name in one}))
    far = sum(float((one[n] - two[n]).square().sum()) for n in one) ** 0.5
    size = sum(float(two[n].square().sum()) for n in one) ** 0.5
    assert sketches[0].distance(sketches[1]) == pytest.approx(far / size, rel=0.1)
    assert sketches[0].distance(sketches[0]) == 0


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 999), max_size=6))
def test_property_a_sample_does_not_depend_on_the_chunks(cuts):
    entries = np.random.default_rng(0).standard_normal(1000).astype("<f4")
    whole, parts = Sampler("F32", 1000), Sampler("F32", 1000)
    whole.take(entries.tobytes())
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 1000]):
        parts.take(entries[start:stop].tobytes())
    assert np.array_equal(whole.values(), parts.values())
    assert len(whole.values()) == 256


def test_other_architectures_and_empty_weights_have_no_distance():
    layouts = [{"w": ("F32", (2,))}, {"w": ("F32", (3,))}]
    one, two = (sketch_of({"w": np.ones(2, dtype=np.float32)}, layout) for layout in layouts)
    assert one.distance(two) is None
    zero = sketch_of({"w": np.zeros(2, dtype=np.float32)}, layouts[0])
    assert zero.distance(zero) is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("names", [("r/step1", "r/step2"), ("a/step1", "b/step1")])
def test_weights_of_a_type_that_is_not_sampled_do_not_stop_the_others(save, tmp_path, dtype, names):
    for seed, name in enumerate(names):
        save(tmp_path / name, seed=seed)
    file = tmp_path / names[1] / "model.safetensors"
    stored = {n: t.to(dtype) if n.endswith("_proj.weight") else t for n, t in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    sound, narrow = verify_all(discover([tmp_path]))
    assert not sound.fatal
    assert "already_quantized" in codes(narrow)


def test_a_tokenizer_of_another_form_is_the_same_and_a_different_one_is_not(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1", "step2", "step3"])
    path = run / "step2" / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "made_by": "another tool"}))
    path = run / "step3" / "tokenizer.json"
    content["model"]["vocab"] = {"<unk>": 0, "b": 1, "a": 2}
    path.write_text(json.dumps(content))
    first, second, third = verify_all(discover([run]))
    assert "tokenizer_differs" not in codes(second)
    assert second.tokenizer_sha == first.tokenizer_sha
    assert "tokenizer_differs" in codes(third)
    assert third.tokenizer_sha != first.tokenizer_sha


def test_a_class_that_tokenizes_in_another_way_makes_another_tokenizer(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1", "step2", "step3"])
    for step, changes in ((2, {"model_max_length": 64}), (3, {"tokenizer_class": "Qwen2Tokenizer"})):
        (run / f"step{step}" / "tokenizer_config.json").write_text(json.dumps(changes))
    assert ["tokenizer_differs" in codes(checkpoint) for checkpoint in verify_all(discover([run]))] == [0, 0, 1]


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("content", ["{", '{"model": {"type": "of next year"}}'])
def test_a_tokenizer_that_cannot_be_loaded_concerns_its_own_checkpoint_only(save_run, tmp_path, broken, content):
    run = save_run(tmp_path / "r", ["step1", "step2", "step3"])
    (run / f"step{broken + 1}" / "tokenizer.json").write_text(content)
    for place, checkpoint in enumerate(verify_all(discover([run]))):
        assert ("unreadable_tokenizer" in codes(checkpoint)) == (place == broken)
        assert "tokenizer_differs" not in codes(checkpoint)
        assert not checkpoint.fatal
        assert bool(checkpoint.tokenizer_sha) == (place != broken)


def test_an_excluded_checkpoint_is_not_asked_for_its_tokens(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1", "step2", "step3"])
    (run / "step1" / "model.safetensors").write_bytes(b"cut")
    first, second, third = verify_all(discover([run]))
    assert codes(first) == ["unreadable"]
    assert codes(second) == ["tokens_unknown"]
    assert "for 2 checkpoints" in second.problems[0].message
    assert codes(third) == []
    later = second.with_problem("not_measurable", "of the text", fatal=True)
    (line,) = warnings([first, later, third])
    assert line.startswith("r@3: D is not known for this checkpoint")


def test_a_problem_with_a_remedy_of_its_own_reads_like_an_error():
    checkpoint = Checkpoint("r", 1, None, None).with_problem("unreadable", "it is cut", fatal=True, remedy="fetch it")
    assert str(checkpoint.problems[0]) == "it is cut | remedy: fetch it"
    assert str(error_for(checkpoint, checkpoint.problems[0])) == "r@1: it is cut | remedy: fetch it"
    told = checkpoint.with_problem("unreadable", "it says remedy: none", fatal=True).problems[1]
    assert str(error_for(checkpoint, told)).endswith(
        "| remedy: fetch or save the checkpoint again, or exclude its step"
    )
    assert Checkpoint.from_dict(checkpoint.to_dict()) == checkpoint
    older = checkpoint.to_dict() | {"problems": [{"code": "x", "message": "y", "fatal": False}]}
    assert Checkpoint.from_dict(older).problems[0].remedy == ""
