"""Contract: the command line of `ptq-eval submit`."""

import numpy as np

from ptq_eval.errors import ClusterError
from tests.checkpoints.support import nanochat_run


def test_dry_run_prints_the_scripts_and_how_to_submit_them(ptq_eval, material, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    out = tmp_path / "out"
    answer = ptq_eval("submit", material.run, "-o", out, *quick, "--slurm", "--dry-run", "--sbatch-option", "qos=long")
    assert (answer.code, answer.err) == (0, "")
    assert "#SBATCH --qos=long\n" in answer.out
    assert "#SBATCH --array=0-" in answer.out
    assert 'sbatch --dependency=afterany:"$job"' in answer.out
    answer = ptq_eval("submit", material.run, "-o", tmp_path / "other", *quick)
    assert answer.code == ClusterError.exit_code
    assert "sbatch is not on the PATH" in answer.err


def test_retry_takes_the_output_folder_alone(ptq_eval, material, tmp_path):
    answer = ptq_eval("submit", material.run, "-o", tmp_path, "--retry-missing", "--bits", "3")
    assert answer.code == 2
    assert "--bits" in answer.err
    assert f"remedy: ptq-eval submit --retry-missing {tmp_path}" in answer.err
    answer = ptq_eval("submit", "--retry-missing", tmp_path)
    assert "nothing was submitted for this folder" in answer.err


def test_checkpoints_of_a_later_stage_are_named_and_no_fault(ptq_eval, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for place in ("base_checkpoints", "chatsft_checkpoints"):
        nanochat_run(tmp_path / place / "d3", "E", (10, 20))
    np.save(tmp_path / "ids.npy", (60 * np.random.default_rng(0).random(4000) ** 3).astype(int))
    texts = ("--eval-text", tmp_path / "ids.npy", "--calib-text", tmp_path / "ids.npy")
    answer = ptq_eval("submit", tmp_path, "-o", tmp_path / "out", *quick, *texts, "--slurm", "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert "2 checkpoints, nothing is submitted" in answer.out
    assert answer.out.count("a checkpoint of fine-tuning") == 2
