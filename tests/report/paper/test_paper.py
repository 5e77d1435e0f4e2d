"""Contract: a finished output folder becomes a LaTeX project whose numbers are those of the report (no LaTeX here)."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pandas as pd
import pytest

import ptq_eval
from ptq_eval.config.paper import PaperConfig
from ptq_eval.errors import LatexError, NothingToFitError, OptionError, OutputFolderError, OutputMismatchError
from ptq_eval.jobs import paper as job
from ptq_eval.report.common.latex import escape, prose, symbol
from ptq_eval.report.paper import project, works
from ptq_eval.report.paper.methods import equation
from ptq_eval.report.paper.names import drawable, spoken, unique
from ptq_eval.report.paper.page import main_text
from ptq_eval.units import read as read_count
from tests.report.paper.support import EMBEDDED, finished, macros, synthetic, ugly
from tests.report.synthetic import make_fit, make_run, make_table


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The paper of the embedded trajectory, sources only."""
    folder = tmp_path_factory.mktemp("embedded") / "paper"
    ptq_eval.paper(EMBEDDED, folder, compile=False)
    return folder


@pytest.fixture(scope="module")
def ugliest(tmp_path_factory):
    """The paper of the ugly folder, and what was written."""
    folder = tmp_path_factory.mktemp("ugly")
    return folder / "paper", write(ugly(folder / "out"), folder / "paper")


@pytest.fixture
def undrawn(monkeypatch):
    """Papers without figures, which take most of the time."""
    monkeypatch.setattr(project.drawing, "write", lambda *args, **options: [])


def write(out, folder, **options):
    return ptq_eval.paper(out, folder, compile=False, **options).written


def plain(text):
    """The number of a macro without its LaTeX."""
    return text.replace("$-$", "-").replace(r" $\pm$ ", "±").replace(",", "").replace(r"\%", "").strip()


NAMES = {"llama-160k": "LlamaOneSixZeroK", "llama-40k": "LlamaFourZeroK"}
WIDTHS = {2: "Two", 3: "Three", 4: "Four", 8: "Eight"}


@pytest.mark.slow
def test_every_delta_of_the_last_checkpoints_is_a_macro_that_agrees_with_the_table(embedded):
    found = macros(embedded)
    table = pd.read_csv(EMBEDDED / "degradation.csv").query("quantizer != 'none'")
    last = table.loc[table.groupby(["run", "quantizer", "bits"])["tokens"].idxmax()]
    assert len(last) == 24
    for row in last.to_dict("records"):
        name = f"ptqDelta{row['quantizer'].title()}{WIDTHS[row['bits']]}Bits{NAMES[row['run']]}"
        value, error = map(Decimal, plain(found[name]).split("±"))
        ulp = Decimal(1).scaleb(value.as_tuple().exponent)
        assert abs(value - Decimal(row["delta"])) <= ulp / 2, name
        assert abs(error - Decimal(row["delta_se"])) <= ulp / 2, name


def test_every_turn_and_every_constant_is_a_macro_that_agrees_with_the_fit(embedded):
    found, fit = macros(embedded), json.loads((EMBEDDED / "fit.json").read_text())
    seen = 0
    for entry in fit["critical_tokens"]:
        name = f"{entry['quantizer'].title()}{WIDTHS[entry['bits']]}Bits{NAMES[entry['run']]}"
        answer = entry["answer"]
        low = f"ptq{'TurnLow' if answer['value'] else 'NotBeforeTokens'}{name}"
        for macro, value in ((f"ptqTurnTokens{name}", answer["value"]), (low, answer["low"])):
            if value is None:
                assert macro not in found
            else:
                assert read_count(plain(found[macro])) == pytest.approx(value, rel=0.006), macro
                seen += 1
    assert seen == 6 + 24
    for entry in fit["fits"]:
        who = entry["quantizer"].title() if entry["quantizer"] != "none" else f"FullPrecision{NAMES[entry['runs'][0]]}"
        for constant, value in entry["parameters"].items():
            for end, suffix in (("value", ""), ("low", "Low"), ("high", "High")):
                name = f"ptqFit{spoken(constant)}{who}{suffix}"
                if value[end] is None:
                    assert name not in found
                else:
                    assert float(plain(found[name])) == pytest.approx(value[end], rel=0.006), name


def test_the_text_holds_no_digit_of_a_result(embedded):
    text = re.sub(r"(?<!\\)%.*", "", (embedded / "main.tex").read_text())
    body = text[text.index(r"\begin{document}") :]
    for name in ("findings", "limitations", "appendix"):
        body += (embedded / "generated" / f"{name}.tex").read_text()
    body = re.sub(r"\\(citep|ref|includegraphics|input)\{[^}]*\}", "", body)
    assert re.findall(r"\d", body) == []
    assert set(re.findall(r"\\(ptq[A-Z]\w+)", body)) <= set(macros(embedded))


def test_the_counts_of_the_abstract_are_those_of_the_folder(embedded):
    found = macros(embedded)
    kinds = [e["verdict_kind"] for e in json.loads((EMBEDDED / "fit.json").read_text())["critical_tokens"]]
    assert found["ptqRuns"] == "2 training runs"
    assert found["ptqCheckpoints"] == "20 checkpoints"
    assert f"in {kinds.count('observed')} of {len(kinds)} combinations" in found["ptqTurns"]
    assert found["ptqTurns"].count("$D/N$ = 47.8") == 1  # awq, 2 bits, llama-40k: the smallest observed D/N


@pytest.mark.slow
def test_exactly_the_works_used_are_cited(embedded, ugliest):
    keys = re.findall(r"@\w+\{([^,]+),", (embedded / "generated" / "references.bib").read_text())
    assert set(keys) == {
        "ptq-eval", "kumar2024", "hoffmann2022", "catalan2025", "frantar2022", "lin2023", "raowu1988", "huber1964",
        "hochberg1988",
    }  # fmt: skip
    other = (ugliest[0] / "generated" / "references.bib").read_text()
    assert "nvidia2025" in other
    assert "llamacpp" in other
    assert "kumar2024" not in other  # nothing was fitted
    assert "catalan2025" not in other  # no caution about the schedule


def test_a_method_of_a_package_cites_both():
    assert works.of_method("gptqmodel:gptq") == ["frantar2022", "package-gptqmodel"]
    assert works.of_method("bitsandbytes:nf4") == ["dettmers2023", "package-bitsandbytes"]
    assert works.of_method("gguf:q4_k") == ["llamacpp"]
    assert works.of_method("torchao:rtn") == ["package-torchao"]
    assert works.of_method("rtn") == works.of_method("mine:own") == []
    assert works.of_method("awq") == ["lin2023"]


def test_every_key_has_an_entry_and_every_entry_a_use():
    text = works.bibliography([rf"\citep{{{key}}}" for keys in works.KEYS.values() for key in keys])
    keys = {key for several in works.KEYS.values() for key in several}
    assert set(re.findall(r"@\w+\{([^,]+),", text)) == keys
    every = (works.Path(works.__file__).with_name("works.bib")).read_text()
    others = {"ptq-eval", "hochberg1988", "raowu1988", "huber1964", "catalan2025"}
    assert set(re.findall(r"@\w+\{([^,]+),", every)) == keys | others


def test_a_rebuild_keeps_main_and_renews_the_rest(tmp_path, undrawn):
    out, folder = synthetic(tmp_path / "out", runs=("small",), ratios=(20, 50)), tmp_path / "paper"
    assert not write(out, folder).kept
    own = (folder / "main.tex").read_text().replace(
        r"\end{abstract}", r"Ours: \ptqDeltaGptqTwoBitsSmall. \ptqDeltaAwqEightBitsSmall. \end{abstract}"
    )  # fmt: skip
    (folder / "main.tex").write_text(own)
    before = macros(folder)
    table = make_table(runs=("small",), ratios=(20, 50), quantizers=("rtn", "gptq"))
    table.loc[table["bits"] == 2, "delta"] *= 2
    finished(out, table, make_fit(table), make_run(table))
    again = write(out, folder)
    assert again.kept
    assert again.gone == ["ptqDeltaAwqEightBitsSmall"]
    assert (folder / "main.tex").read_text() == own
    assert macros(folder)["ptqDeltaGptqTwoBitsSmall"] != before["ptqDeltaGptqTwoBitsSmall"]
    assert macros(folder)["ptqDeltaAwqEightBitsSmall"] == r"\textbf{??}"
    assert (folder / "generated" / "main.tex").read_text() != own


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    out, folder = synthetic(tmp_path / "out", ratios=(20, 50)), tmp_path / "thesis"
    folder.mkdir()
    (folder / "main.tex").write_text("mine")
    with pytest.raises(OutputFolderError, match="other files"):
        write(out, folder)
    assert [path.name for path in folder.iterdir()] == ["main.tex"]


def test_a_folder_without_a_report_or_with_an_old_one_is_refused(tmp_path):
    with pytest.raises(NothingToFitError, match="no report"):
        write(tmp_path, tmp_path / "paper")
    out = synthetic(tmp_path / "out", ratios=(20, 50))
    table = pd.read_csv(out / "degradation.csv")
    table.loc[table["bits"] == 2, "delta"] += 0.1
    table.to_csv(out / "degradation.csv", index=False)
    with pytest.raises(OutputMismatchError, match="not of the measurements"):
        write(out, tmp_path / "paper")
    (out / "degradation.csv").write_text("run\n")
    with pytest.raises(OutputMismatchError, match="damaged"):
        write(out, tmp_path / "paper")
    assert not (tmp_path / "paper").exists()


def test_only_limitations_that_hold_are_listed(embedded, ugliest, undrawn, tmp_path):
    def limits(folder):
        return {name.removeprefix("ptqLimit") for name in macros(folder) if name.startswith("ptqLimit")}

    assert {"Schedule", "FewRuns", "NoiseFloor", "Withheld", "Calibration"} <= limits(embedded)
    assert not {"Failed", "Partial", "OneWidth", "OneSize", "Early", "Unidentified"} & limits(embedded)
    assert {"Failed", "Partial", "Unidentified"} <= limits(ugliest[0])
    assert not {"Schedule", "Withheld"} & limits(ugliest[0])
    write(synthetic(tmp_path / "one", runs=("small",), ratios=(20, 50), bits=(4,)), tmp_path / "one-bit")
    assert {"OneWidth", "OneSize"} <= limits(tmp_path / "one-bit")


@pytest.mark.parametrize(("epochs", "limit"), [(None, ""), (0.4, ""), (13.897, "up to 13.9 times in small:")])
def test_repeated_tokens_are_a_limitation_where_the_checkpoints_say_so(epochs, limit, undrawn, tmp_path):
    out = synthetic(tmp_path / "out", runs=("small",), ratios=(20, 50))
    run = json.loads((out / "run.json").read_text())
    run["checkpoints"] = [{"run": "small", "epochs": 0.1}, {"run": "small", "epochs": epochs}]
    (out / "run.json").write_text(json.dumps(run))
    write(out, tmp_path / "paper")
    assert limit in macros(tmp_path / "paper").get("ptqLimitRepeated", "")
    assert bool(limit) == ("ptqLimitRepeated" in macros(tmp_path / "paper"))


def test_one_combination_without_calibration_is_worded_as_one(undrawn, tmp_path):
    table = make_table(runs=("small",), ratios=(20,), quantizers=("rtn",), bits=(4,))
    run, fit = make_run(table), make_fit(table)
    for roles in (run.get("texts") or {}).values():
        roles.pop("calibration", None)
    (one,) = fit["critical_tokens"]
    one |= {"verdict_kind": "not_identified", "answer": None, "reason": {"kind": "no_turn"}}
    out = finished(tmp_path / "out", table.assign(calibration=""), fit, run)
    write(out, tmp_path / "paper")
    found = macros(tmp_path / "paper")
    assert found["ptqCalibrationInputs"] == "No method used here needs the inputs of a layer."
    assert found["ptqCalibrationText"] == "none"
    assert "1 combination" not in found["ptqTurns"] + found.get("ptqLimitUnidentified", "")


def test_runs_that_cannot_be_drawn_get_names_that_differ(ugliest):
    folder, written = ugliest
    assert written.renamed == {"s&m_a%l{#}~^\\$ 训练": "run 1 (s&m_a%l{#}~^\\$)", "训练-二$x_1$": "run 2 ($x_1$)"}
    for path in (folder / "generated").rglob("*.tex"):
        assert "训" not in path.read_text(), path
    assert drawable(["a", "b", "日本", "run 3"]) == {"日本": "run 3'"}
    assert drawable(["Käthe", "naïve-řeka"]) == {}


def test_a_run_is_renamed_everywhere_and_wrong_names_are_refused(undrawn, tmp_path):
    out = synthetic(tmp_path / "out", ratios=(20, 50))
    drawn = []
    project.drawing.write = lambda folder, study, figures, tables, **options: drawn.append(tables) or []
    write(out, tmp_path / "paper", rename=("small=Ours, 80k_b",))
    found = macros(tmp_path / "paper")
    assert found["ptqRunOursEightZeroKB"] == r"Ours, 80k\_b"
    assert "ptqRunSmall" not in found
    assert "Ours, 80k" in found["ptqDeltaRange"]
    assert set(drawn[0]["delta"]["run"]) == {"Ours, 80k_b", "large"}
    for wrong, said in (({"smal": "x"}, "did you mean 'small'"), ({"small": "large"}, "two runs one name")):
        with pytest.raises(OptionError, match=said):
            write(out, tmp_path / "other", rename=wrong)
    with pytest.raises(OptionError, match="not RUN=NAME"):
        PaperConfig(rename="small")
    assert PaperConfig(rename="a=b=c").rename == {"a=b": "c"}


def test_the_class_is_the_authors_choice():
    asked = ({}, {"style": "onecolumn"}, {"documentclass": "[sigconf]{acmart}"}, {"documentclass": "IEEEtran"})
    plain, one, acm, bare = (main_text(PaperConfig(**options).latex_class, wide=True) for options in asked)
    assert r"\documentclass[twocolumn,10pt]{article}" in plain
    assert r"\documentclass[onecolumn,10pt]{article}" in one
    assert r"\documentclass[sigconf]{acmart}" in acm
    assert r"\documentclass{IEEEtran}" in bare
    assert "{geometry}" in one
    assert "{geometry}" not in acm + bare
    for wrong in (r"article}\input{/etc/passwd", "[a]", "two words"):
        with pytest.raises(OptionError, match="not a class"):
            PaperConfig(documentclass=wrong)


@pytest.mark.slow
@pytest.mark.drawn("pdf")
def test_without_latex_the_sources_are_left_and_the_packages_are_named(tmp_path, monkeypatch):
    out = synthetic(tmp_path / "out", ratios=(20, 50))
    monkeypatch.setattr(job.shutil, "which", lambda name: None)
    with pytest.raises(LatexError, match="latexmk and pdflatex are not installed") as caught:
        ptq_eval.paper(out, tmp_path / "paper")
    assert job.PACKAGES in str(caught.value)
    assert caught.value.exit_code == 56
    assert (tmp_path / "paper" / "main.tex").exists()
    assert (tmp_path / "paper" / "generated" / "figures" / "delta.pdf").read_bytes().startswith(b"%PDF")


def test_names_can_be_spoken():
    assert spoken("gptq", "2", "bits", "llama-160k") == "GptqTwoBitsLlamaOneSixZeroK"
    assert spoken("C_T") == "CT"
    assert spoken("Käthe 训练") == "Kathe"
    assert unique("a", []) == "a"
    taken = []
    for _ in range(30):
        taken.append(unique("a", taken))
    assert len(set(taken)) == 30
    assert all(name.isalpha() for name in taken)


def test_laws_and_sentences_become_mathematics():
    assert equation("L = E + B / D^beta  (one N: E contains A / N^alpha)") == r"$L = E + B / D^{\beta}$"
    drawn = equation("delta = C_T * D^gamma_D / N^gamma_N * exp(-P / gamma_post)").replace(r"\allowbreak  ", "")
    assert drawn == r"$\delta = C_{T} \,D^{\gamma_{D}} / N^{\gamma_{N}} \,\exp (-P / \gamma_{\mathrm{post}})$"
    assert equation("a formula & more") == r"a formula \& more"
    assert symbol("gamma_D") == r"$\gamma_{D}$"
    assert prose("C_T and gamma_post at D = 3M (D/N = 4), -0.5") == (
        r"$C_{T}$ and $\gamma_{\mathrm{post}}$ at $D$ = 3M ($D/N$ = 4), $-$0.5"
    )
    assert escape("[3 to 4]") == "{}[3 to 4]"
