"""The paper of this folder from the tables of results/, in one command:

    python -m results.paper.build                  # or `make paper`: generated/, main.pdf, paper.pdf
    python -m results.paper.build --no-compile     # generated/ alone, without LaTeX
    python -m results.paper.build -o FOLDER        # the same project somewhere else

main.tex is prose.  Every number of it is a macro, every table and figure a file below generated/, made here from
precision/, adapt/ and arena/.  Sentences that name a direction are made here too, so that
they stay right when runs are added.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from ptq_eval.jobs.paper import compiled
from ptq_eval.report.common.latex import escape, prose
from ptq_eval.report.common.numbers import count, percent, ratio, short
from ptq_eval.report.common.words import listed, plural
from ptq_eval.report.paper import project
from ptq_eval.report.paper.numbers import Numbers
from results.paper import dispute, figures, others, sentences, study, tables, words
from results.precision import findings, number_formats

HERE = Path(__file__).resolve().parent
SOURCES = (
    study.TABLE, others.TRAINED, number_formats.TABLE, others.ADAPT / "predictions.csv", others.ADAPT / "summary.csv",
    others.ARENA / "arena.csv",
)  # fmt: skip


_FAR = 80
"""The D/N that most runs of the design reach."""


def build(folder: Path = HERE) -> project.Written:
    """Write the project below `folder`, without compiling it."""
    table = study.read()
    runs = study.of_runs(study.usual(table))
    against = findings.against_constant(table)
    counted = others.counted(others.arena())
    found = numbers(table, runs, against, counted)
    texts = {
        "tables/design.tex": tables.design(table),
        "tables/quantizers.tex": tables.quantizers(table),
        "tables/growth.tex": tables.growth(runs),
        "tables/bits.tex": tables.bits(runs),
        "tables/constants.tex": tables.constants(),
        "tables/schedules.tex": tables.schedules(against),
        "tables/equal.tex": tables.equal_loss(runs),
        "tables/harm.tex": tables.harm(runs),
        "tables/training.tex": tables.training(table),
        "tables/adapters.tex": tables.adapters(others.predictions()),
        "tables/arena.tex": tables.arena(counted),
    }
    drawn, data = figures.all_of(runs, against)
    main = (HERE / project.MAIN).read_text(encoding="utf-8")
    return project.write(folder, main, found, texts, drawn, data, [HERE / "works.bib"])


def numbers(table: pd.DataFrame, runs: pd.DataFrame, against: pd.DataFrame, counted: pd.DataFrame) -> Numbers:
    """Every macro of main.tex."""
    found = Numbers()
    for name, text in {**_design(table), **_results(table, runs, against, counted)}.items():
        found.add_latex(name, re.sub(r"(?<![\w/$\\{])([ND])(?![\w/])", r"$\1$", prose(text)))
    found.add_latex("Digests", _digests())
    return found


def _design(table: pd.DataFrame) -> dict[str, str]:
    """What was trained and measured."""
    runs = table.drop_duplicates("run")
    usual = study.usual(table)
    far = usual[usual["tokens_per_param"] > _FAR]
    seeds = table.groupby(["text", "params", "schedule", "unusual"])["seed"].nunique()
    repeats = table.groupby("corpus")["epochs"].max()
    return {
        "Runs": f"{len(runs)}",
        "Checkpoints": f"{len(table[['run', 'part', 'step']].drop_duplicates()):,}",
        "Measurements": f"{len(table):,}",
        "Planned": f"{planned()}",
        "Sizes": listed([count(value) for value in sorted(runs["params"].unique())]),
        "SizeLayers": listed(
            [
                f"{plural(layers, 'layer')} of width {width} (N = {count(params)})"
                for params, layers, width in sorted(set(zip(runs["params"], runs["layers"], runs["width"])))
            ]
        ),
        "Widths": listed([f"{width}" for width in sorted(runs["width"].unique())]),
        "RatioFirst": short(table["tokens_per_param"].min()),
        "RatioLast": ratio(table["tokens_per_param"].max()),
        "Bits": listed([f"{width:.0f}" for width in sorted(table["bits"].unique())]),
        "Seeds": f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}",
        "Windows": listed([f"{value}" for value in sorted(table["windows"].unique())]),
        "GroupSize": listed([f"{value:.0f}" for value in sorted(table["group_size"].dropna().unique())]),
        "Decay": percent(listed_one(table["decay"])),
        "Rate": short(findings.USUAL["peak_learning_rate"]),
        "WeightDecay": short(findings.USUAL["weight_decay"]),
        "Batch": listed([f"{value}" for value in sorted(table["batch_size"].unique())]),
        "Warmup": listed([f"{value}" for value in sorted(table["warmup"].unique())]),
        "FarRatio": short(_FAR),
        "FarSizes": listed([f"N = {count(value)}" for value in sorted(far["params"].unique())]),
        "FarTexts": listed(sorted(far["corpus"].unique())),
        "FarRuns": f"{far[study.RUN].drop_duplicates().shape[0]}",
        "Epochs": listed([f"{short(value)} times ({corpus})" for corpus, value in repeats.items()]),
        "ErrorsOfThree": short(float(stats.t.ppf(0.975, 2))),
        "ErrorsOfNine": short(float(stats.t.ppf(0.975, 8))),
        "First": short(study.FIRST),
        "Clear": sentences.clear(table),
    }


def listed_one(column: pd.Series) -> float:
    """The one value of a column; NaN where there are several."""
    values = column.dropna().unique()
    return float(values[0]) if len(values) == 1 else float("nan")


def planned() -> int:
    """Runs that the study describes."""
    from ptq_eval.pretrain.stacked.study import read

    return len(read(findings.HERE / "study.toml").runs)


def _results(table: pd.DataFrame, runs: pd.DataFrame, against: pd.DataFrame, counted: pd.DataFrame) -> dict[str, str]:
    equal, others_equal = dispute.equal_loss(runs)
    counts, rises, turns = dispute.harm(runs)
    growth, change = sentences.growth(runs)
    factors, second = sentences.bits(runs)
    exponents = others.published_exponents()
    adapted = others.adapted()
    whole = adapted[adapted["quantizer"] == "none"]
    chances = (1 + 2 * len(study.BITS)) * study.unusual(table, "annealed")["unusual"].nunique()
    return {
        **dispute.verdicts(runs, against),
        "Annealing": dispute.annealing(against),
        "Opposite": dispute.opposite(against),
        "Directions": dispute.directions(against),
        "EqualLoss": equal,
        "EqualLossOthers": others_equal,
        "Interpolated": words.times(study.of_each_run(study.interpolated(runs))),
        "HarmCounts": counts,
        "HarmRises": rises,
        "HarmTurns": turns,
        "Growth": growth,
        "GrowthChange": change,
        "KumarExponent": short(exponents["kumar"]),
        "OuyangExponent": short(exponents["ouyang"]),
        "BitFactors": factors,
        "BitSecondOrder": second,
        "BitExponential": short(others.predicted_bit_ratios((2,))[r"exponential~\citep{kumar2024}"][0]),
        "Size": sentences.size(runs),
        "SizeCaution": sentences.size_caution(table),
        "Training": sentences.training(table),
        "TrainingChance": short(0.05 * chances),
        "TrainingAtLoss": sentences.at_equal_loss(),
        "TrainingTogether": sentences.together(),
        "Floats": sentences.floats(),
        "FloatsTraining": sentences.floats_in_training(),
        "Averages": sentences.averages(study.of_runs(study.usual(table))),
        **sentences.adapters(),
        "AdaptBefore": f"{whole['loss_before'].mean():.3f}",
        "AdaptAfter": listed([f"{value:.3f}" for value in whole["loss"]]),
        "Arena": sentences.arena(counted),
    }


def _digests() -> str:
    """The sources with the start of their SHA-256."""
    said = []
    for path in SOURCES:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        name = escape(str(path.relative_to(study.RESULTS))).replace("/", r"/\allowbreak ")
        said.append(rf"\texttt{{{name}}} (\texttt{{{digest}}})")
    return f"{listed(said)}; in brackets is the start of each SHA-256"


def main() -> None:
    """Parse arguments, write and compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=HERE, help="another folder for the project")
    parser.add_argument("--no-compile", action="store_true", help="write the sources alone")
    arguments: Any = parser.parse_args()
    written = build(arguments.out)
    for name in written.gone:
        print(rf"main.tex uses \{name}, which is no result")
    if not arguments.no_compile:
        pdf = compiled(arguments.out)
        print(shutil.copy(pdf, arguments.out / "paper.pdf"), f"{pdf.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
