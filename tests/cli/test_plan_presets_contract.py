"""Contract: `ptq-eval plan` from several published laws together, and from laws of formats and group sizes."""

import json


def test_several_presets_together(ptq_eval, tmp_path):
    question = ("--params", "1B", "--serve-bits", "4")
    answer = ptq_eval("plan", "--preset", "EPOCH_2024,OUYANG_2024", *question)
    assert (answer.code, answer.err) == (0, "")
    assert "342B" in answer.out
    assert (tmp_path / "work" / "epoch_2024+ouyang_2024-plan" / "plan.json").is_file()
    figures = tmp_path / "work" / "epoch_2024+ouyang_2024-plan" / "figures"
    assert not [*figures.glob("precision_vs_budget.*")]  # it would be empty
    assert ptq_eval("plan", *question, "-o", figures.parent).code == 0
    assert [*figures.glob("precision_vs_budget.*")]
    assert ptq_eval("plan", "--preset", "EPOCH_2024,OUYANG_2024", *question, "-o", figures.parent).code == 0
    assert not [*figures.glob("precision_vs_budget.*")]  # nor is that of an earlier plan left


def test_formats_and_group_sizes(ptq_eval, tmp_path):
    options = ("--params", "1B", "--tokens", "100B", "--group-size", "128", "-o", tmp_path / "plan")
    answer = ptq_eval("plan", "--preset", "SUN_2025", "--serve-format", "E4M3,E2M1", *options)
    assert (answer.code, answer.err) == (0, "")
    for words in ("Trained and served in one format, 128 numbers per scale", "27.3T", "393B", "served in E2M1"):
        assert words in answer.out, words
    answer = ptq_eval("plan", "--preset", "EPOCH_2024,CHEN_2025", *options)
    assert (answer.code, answer.err) == (0, "")
    assert "0.0174" in answer.out
    assert json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))["question"]["group_size"] == 128
    names = {path.stem for path in (tmp_path / "plan" / "figures").iterdir()}
    assert names == {"loss_vs_tokens"}  # the bits are no axis under these laws
