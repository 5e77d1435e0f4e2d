STUDY = """
text = "{text}"
[run]
width = 8
layers = 1
vocab = 300
context = 16
batch_size = 4
warmup = 4
validation_windows = 4
ratios = [1, 2]
[[grid]]
weights = ["full", 4]
ema = [0.9]
"""


def test_a_study_is_trained_and_its_runs_measured(ptq_eval, material, quick, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.format(text=material.evaluation))
    command = ("pretrain", "--study", tmp_path / "study.toml", "-o", tmp_path / "out", "--device", "cpu")
    assert "0 of 2 runs complete, 0 of 4 checkpoints saved" in ptq_eval(*command, "--status").out
    answer = ptq_eval(*command, "--threads", "1")
    assert (answer.code, answer.err) == (0, "")
    assert "2 of 2 runs complete, 4 of 4 checkpoints saved" in ptq_eval(*command, "--status").out
    inspected = ptq_eval("inspect", tmp_path / "out" / "runs")
    assert (inspected.code, inspected.err) == (0, "")
    assert "averaged" in inspected.out
    ptq_eval(*command, "--width", "16").refuses(2, "--width", "study file")
    ptq_eval(*command[:3]).refuses(2, "output folder")


def test_one_run_needs_a_folder(ptq_eval):
    ptq_eval("pretrain").refuses(2, "OUT")
    ptq_eval("pretrain", "out", "--status").refuses(2, "--study")
