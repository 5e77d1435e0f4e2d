"""What the paper takes from elsewhere than the precision study: published constants, the arena, the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ptq_eval.laws.formulas import presets
from results.paper.study import RESULTS

TRAINED = RESULTS / "precision" / "training.csv"
ADAPT, ARENA = RESULTS / "adapt", RESULTS / "arena"
HELD_OUT = {"last": r"largest $D$", "N": r"largest $N$", "P": "each bit-width"}
_PLACES = {"best": "good", "not_different": "good", "worse": "worse", "no_error": "no error", "not_identified": "not"}
_LAWS = {
    "kumar_ptq": "Kumar et al.", "kumar_ptq_ratio": "Kumar et al. in D/N", "kumar_phase": "Kumar et al. with phase",
    "phase": "phase of the rate alone", "ouyang": "Ouyang et al.", "chen": "Chen et al.",
    "staying": "δ stays as it was", "power_per_bits": "a power per bit-width",
}  # fmt: skip


def published_exponents() -> dict[str, float]:
    """The exponent of D in the laws of Kumar et al. and of Ouyang et al."""
    return {"kumar": _kumar()["gamma_D"], "ouyang": _ouyang()["gamma_D"]}


def published_size_factor(small: float, large: float) -> dict[str, float]:
    """δ of the larger over that of the smaller model at the same D, by both laws."""
    return {name: (large / small) ** -law["gamma_N"] for name, law in (("kumar", _kumar()), ("ouyang", _ouyang()))}


def predicted_bit_ratios(bits: Sequence[int]) -> dict[str, list[float]]:
    """The factor of δ from b + 1 to b bits: second order, and the published laws (LaTeX names)."""
    lower = np.array(bits, dtype=float)
    return {
        "second order": list(((2 ** (lower + 1) - 1) / (2**lower - 1)) ** 2),
        r"exponential~\citep{kumar2024}": [float(np.exp(1 / _kumar()["gamma_post"]))] * len(bits),
        r"power~\citep{ouyang2024}": list(((lower + 1) / lower) ** _ouyang()["gamma_P"]),
    }


def _kumar() -> Mapping[str, float]:
    return presets.KUMAR_2024.constants


def _ouyang() -> Mapping[str, float]:
    return presets.OUYANG_2024.constants


def training_name(unusual: str) -> str:
    """A training that differs from the usual one, in words."""
    named = {"weights": "W", "activations": "A", "kv": "KV", "peak_learning_rate": "rate ", "optimizer": ""}
    named |= {"weight_decay": "weight decay "}
    options, _, branch = unusual.partition(" in the ")
    words = options.split(" ")
    said = " ".join(_joined(named.get(name, f"{name} "), value) for name, value in zip(words[::2], words[1::2]))
    return said + (", branch alone" if branch else "")


def _joined(name: str, value: str) -> str:
    """`W4`, but `W fp8_e4m3`."""
    return name + value if value.replace(".", "").isdigit() or not name else f"{name.strip()} {value}"


def predictions() -> pd.DataFrame:
    """Predicted and observed damage of every quantized base that has a prediction, rounded to nearest."""
    table = pd.read_csv(ADAPT / "predictions.csv")
    return table[(table["quantizer"] == "rtn") & table["predicted"].notna()]


def trained(question: str) -> pd.DataFrame:
    """The effects of precision/training.csv under one question."""
    table = pd.read_csv(TRAINED)
    return table[table["question"] == question]


def constants() -> dict[str, dict[str, tuple[float, float, float, float]]]:
    """{quantizer: {constant: (value, low, high, published)}} of Eq. 1 fitted to annealed branches."""
    own = trained("constants")
    found: dict[str, dict[str, tuple[float, float, float, float]]] = {}
    for row in own[own["ending"] == "annealed"].to_dict("records"):
        name, quantizer = row["case"].rsplit(" ", 1)
        values = (row["effect"], row["share_low"], row["share_high"], row["paper"])
        found.setdefault(quantizer, {})[name] = values
    return found


def precision_name(case: str) -> str:
    """`4/full/full in the branch` as `W4, branch alone`."""
    bits, _, branch = case.partition(" in the ")
    said = [_joined(part, value) for part, value in zip(("W", "A", "KV"), bits.split("/")) if value != "full"]
    return " ".join(said) + (", branch alone" if branch else "")


def adapted() -> pd.DataFrame:
    """Every run of the adapters, before and after training."""
    return pd.read_csv(ADAPT / "summary.csv")


def arena() -> pd.DataFrame:
    """Scores of every law in every ranking."""
    return pd.read_csv(ARENA / "arena.csv")


def counted(arena: pd.DataFrame) -> pd.DataFrame:
    """How often each law of δ that was scored at all is good, worse, without an error or not identified."""
    own = arena[arena["response"] == "delta"]
    own = own.assign(verdict=own["place"].map(_PLACES))
    table = own.pivot_table(index=["law", "held_out"], columns="verdict", aggfunc="size", fill_value=0, observed=True)
    table = table.reindex(columns=["good", "worse", "no error", "not"], fill_value=0).reset_index()
    scored = table.groupby("law")[["good", "worse", "no error"]].sum().sum(axis=1)
    kept = [law for law in dict.fromkeys([*_LAWS, *table["law"]]) if scored.get(law, 0)]
    return pd.concat([table[table["law"] == law] for law in kept], ignore_index=True)


def verdict_counts(row: Mapping | None) -> str:
    """`4/0/3/0`, a dash where there is no ranking."""
    return "--" if row is None else "/".join(f"{row[name]}" for name in ("good", "worse", "no error", "not"))


def law_name(law: str) -> str:
    """A law as the table names it."""
    return _LAWS.get(law, law)
