"""Tiny real models, laid out on disk as each trajectory format lays them out."""

import json
from pathlib import Path

import pytest

from tests.checkpoints.support import llama_config, write_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Folders made of other formats are below the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@pytest.fixture(scope="session")
def save():
    """save(folder, seed=0, config=None, tokenizer=True, **save_pretrained options) -> the model saved."""
    import torch
    from transformers import AutoModelForCausalLM

    def save(folder, seed=0, config=None, tokenizer=True, dtype=torch.float32, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config or llama_config()).to(dtype)
        model.save_pretrained(folder, **options)
        if tokenizer:
            write_tokenizer(Path(folder))
        return model

    return save


@pytest.fixture
def save_run(save):
    """save_run(folder, labels, state=None): a checkpoint per label; `state(label)` is its trainer state."""

    def save_run(folder, labels, state=None):
        for seed, label in enumerate(labels):
            save(folder / label, seed=seed)
            if state is not None:
                (folder / label / "trainer_state.json").write_text(json.dumps(state(label)))
        return folder

    return save_run


@pytest.fixture
def trainer_run(save_run, tmp_path):
    """An HF Trainer run of three steps with explicit token counts and a constant learning rate."""

    def state(label):
        step = int(label.rpartition("-")[2])
        history = [{"step": s, "loss": 1.0, "learning_rate": 1e-3} for s in range(100, step + 1, 100)]
        return {
            "global_step": step,
            "max_steps": 1000,
            "num_input_tokens_seen": step * 4096,
            "total_flos": 1,
            "log_history": [*history, {"step": step, "eval_loss": 1.0}],
        }

    return save_run(tmp_path / "small", ["checkpoint-1000", "checkpoint-500", "checkpoint-200"], state)


@pytest.fixture
def hub_cache(save, tmp_path):
    """hub_cache(model, {commit: [revisions]}): a hub cache with links from snapshots to blobs."""

    def build(model, commits):
        root = tmp_path / "hub" / ("models--" + model.replace("/", "--"))
        for seed, (commit, revisions) in enumerate(commits.items()):
            staging = tmp_path / "staging" / commit
            save(staging, seed=seed)
            (root / "snapshots" / commit).mkdir(parents=True)
            (root / "blobs").mkdir(exist_ok=True)
            for file in staging.iterdir():
                blob = root / "blobs" / f"{commit}-{file.name}"
                file.rename(blob)
                (root / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{blob.name}")
            for revision in revisions:
                ref = root / "refs" / revision
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(commit)
        return root

    return build
