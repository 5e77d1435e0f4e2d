"""Contract: a table's columns become a law's data, and whatever is wrong with them is said by column, row and value."""

import numpy as np
import pytest

from ptq_eval import errors, laws
from ptq_eval.config.fit import parse_options
from ptq_eval.laws.catalogue import law_for, make_law
from ptq_eval.laws.fit.losses import make_loss
from ptq_eval.laws.fit.requirements import require
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.tables.expressions import evaluate
from ptq_eval.laws.tables.external import map_columns, parse_columns, select, unread


@pytest.fixture
def table():
    N, D, P = (g.ravel() for g in np.meshgrid([3e7, 6e7, 1e8], [1e9, 4e9, 16e9], [3.0, 4.0], indexing="ij"))
    names = np.array(["gptq", "awq"] * 9, object)
    return {"Model Size": N, "flop": 6 * N * D, "b": P, "q": 3 + 1e-3 * P, "fp": np.full(18, 3.0), "method": names}


COLUMNS = "N=Model Size,D=flop/(6*N),P=b,delta=q - fp"


def mapped(table, columns=COLUMNS, law=KumarPTQ, rows=None):
    return map_columns(law(), table, parse_columns(columns), rows).data


def test_expressions_use_columns_and_names_defined_before(table):
    data = mapped(table)
    assert data["D"] == pytest.approx(table["flop"] / 6 / table["Model Size"])
    assert data["delta"] == pytest.approx(1e-3 * table["b"])


def test_a_name_in_its_own_definition_is_the_column(table):
    table |= {"N": table["Model Size"] / 1e9, "D": table["flop"] / 6 / table["Model Size"] / 1e9}
    data = mapped(table, "N=1e9*N,D=1e9*D,P=b,delta=q-fp")
    assert data["N"] == pytest.approx(table["Model Size"])
    assert data["D"].max() == pytest.approx(16e9)


def test_usual_names_need_no_mapping(table):
    usual = {"params": table["Model Size"], "tokens": np.full(18, 1e9), "bits": table["b"], "delta": table["q"]}
    usual |= {"delta_se": np.full(18, 0.1), "run": np.array(["a"] * 18, object)}
    data = mapped(usual, "")
    assert set(data) >= {"N", "D", "P", "delta", "se", "run", "checkpoint"}
    assert set(data["run"]) == {"a"}


def test_without_runs_each_pair_is_one_and_a_note_says_so(table):
    found = map_columns(KumarPTQ(), table, parse_columns(COLUMNS))
    assert len(set(found.data["run"])) == 9
    assert "no column `run`" in found.notes[0]


def test_conditions_choose_rows_and_compare_text(table):
    assert len(select(table, "b <= 3 and `Model Size` > 4e7")) == 6
    assert len(select(table, 'method == "gptq" or not b > 0')) == 9
    rows = select(table, "b == 4")
    assert set(mapped(table, rows=rows)["P"]) == {4.0}


def test_commas_and_equals_inside_expressions_are_left_alone():
    assert parse_columns("N=a, D = `x, y`*2") == {"N": "a", "D": "`x, y`*2"}


@pytest.mark.parametrize(
    ("columns", "error", "said"),
    [
        ("N=Model Sise", errors.ExpressionError, "'Model Sise'"),
        ("N=`Model Sise`", errors.ColumnError, "did you mean 'Model Size'"),
        ("N=Model Size,D=flopp/6", errors.ColumnError, "no column 'flopp' (wanted for D)"),
        ("N=method", errors.TextColumnError, "N = method holds text | got 'gptq' in row 1 and 17 more"),
        ("N=Model Size,D=flop/(6*method)", errors.TextColumnError, "method holds text"),
        ("N=0*b", errors.NotPositiveError, "N = 0*b is zero or negative | got 0 in row 1 and 17 more"),
        ("N=-`Model Size`", errors.NotPositiveError, "zero or negative"),
        ("N=log(-b)", errors.NotFiniteError, "N = log(-b) is blank, NaN or infinite"),
        ("N=b", errors.UnitsError, "did you mean N=1e9*b?"),
        ("N", errors.ExpressionError, "not NAME=COLUMN"),
        ("N=b,N=b", errors.ExpressionError, "defined twice"),
    ],
)
def test_a_wrong_mapping_is_named(table, columns, error, said):
    more = "".join(f",{pair}" for pair in COLUMNS.split(",") if pair.split("=")[0] not in columns)
    with pytest.raises(error) as raised:
        mapped(table, columns + more)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_variable_that_nothing_names_lists_the_columns(table):
    with pytest.raises(errors.ColumnError, match=r"kumar_ptq needs N, .*allowed: Model Size, flop.*--columns N=COLUMN"):
        mapped(table, "D=flop,P=b,delta=q")


def test_a_blank_cell_is_refused_and_can_be_left_out(table):
    table["fp"][4] = np.nan
    with pytest.raises(errors.NotFiniteError, match="row 5"):
        mapped(table)
    assert len(mapped(table, rows=select(table, "isfinite(fp)"))["N"]) == 17


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "(1).__class__",
        "[x for x in b]",
        "b if b else q",
        "lambda: 0",
        "exp(b, q)",
        "b[0]",
        "open",
        "b @ q",
        "exp(b=1)",
        "(" * 500,
        "b" * 2000,
    ],
)
def test_nothing_but_arithmetic_is_evaluated(table, text):
    with pytest.raises((errors.ExpressionError, errors.ColumnError)):
        mapped(table, f"{COLUMNS},run={text}" if "=" not in text else f"N={text},D=flop,P=b,delta=q")


def test_a_huge_power_is_infinite_and_not_a_hang(table):
    with pytest.raises(errors.NotFiniteError):
        mapped(table, "N=9**9**9**9,D=flop,P=b,delta=q")


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("b == 3 and `Model Size` < 4e7 and flop < 2e17", errors.TooFewPointsError, "got 1 point |"),
        ("`Model Size` < 4e7", errors.NotVaryingError, "1 distinct value of N"),
        ("b == 3", errors.NotVaryingError, "1 distinct value of P"),
        ("b > 99", errors.ExpressionError, "no row meets the condition"),
        ("c > 1", errors.ColumnError, "no column 'c'"),
        ("args.lr > 1", errors.ColumnError, "no column 'args.lr'"),
        ("b.mean().item > 1", errors.ExpressionError, "is not arithmetic"),
    ],
)
def test_what_cannot_be_fitted_is_refused(table, where, error, said):
    with pytest.raises(error) as raised:
        require(KumarPTQ(), mapped(table, rows=select(table, where)))
    assert said in str(raised.value)


def test_deltas_below_zero_are_refused(table):
    with pytest.raises(errors.NegativeDeltaError, match="0 of 18 deltas above zero"):
        require(KumarPTQ(), mapped(table, COLUMNS.replace("q - fp", "fp - q")))


def test_every_refusal_has_an_exit_code_of_its_own():
    names = "DataFile Column Expression TextColumn NotFinite NotPositive Units TooFewPoints NotVarying NegativeDelta"
    kinds = {getattr(errors, f"{name}Error") for name in names.split()}
    every = errors.PtqEvalError.__subclasses__()
    assert len({kind.exit_code for kind in every}) == len(every)
    assert kinds <= set(every)


def test_short_names_and_parts_follow_what_is_given():
    assert isinstance(make_law("ptq"), KumarPTQ)
    assert law_for("n_eff", ["N", "P_w", "kv"]).columns == ("N", "D", "P_w", "P_kv")
    assert law_for("n_eff", ["params", "bits"]).columns == ("N", "D", "P_w")
    assert law_for("chinchilla", ["bits"]).columns == Chinchilla.columns
    options = parse_options(["offsets=false", "parts=weights+kv"])
    assert options == {"offsets": False, "parts": ("weights", "kv")}
    assert len(law_for("n_eff", [], options).parameters) == 7
    with pytest.raises(errors.UnknownPluginError, match="did you mean 'ouyang'"):
        make_law("ouyangg")
    with pytest.raises(errors.OptionError, match="no option 'offset'"):
        make_law("n_eff", {"offset": False})


def test_one_column_of_bits_means_the_weights():
    table = {"params": np.full(3, 1e8), "tokens": np.full(3, 1e9), "loss": np.full(3, 3.0), "bits": np.full(3, 4.0)}
    law = law_for("n_eff", table)
    assert set(map_columns(law, table, {}).data["P_w"]) == {4.0}


@pytest.mark.parametrize(
    ("law", "given"), [("n_eff", "P_w"), ("unified_delta", "P_w"), ("unified", "P_w"), ("unified", "kv")]
)
def test_laws_of_trained_precision_have_the_parts_that_are_given(law, given):
    parts = [name for name in law_for(law, ["N", "D", "P", given]).columns if name.startswith("P_")]
    assert parts == ["P_w" if given == "P_w" else "P_kv"]


def test_names_with_blanks_outside_backticks_are_shown_with_them(table):
    with pytest.raises(errors.ExpressionError) as raised:
        mapped(table, "N=Model Size,D=flop/(6*Model Size),P=b,delta=q")
    assert str(raised.value).startswith("D: not an expression")
    assert raised.value.remedy.endswith("D=flop/(6*`Model Size`)")
    with pytest.raises(errors.ExpressionError, match="`Model Size` < 4e7"):
        select(table, "Model Size < 4e7")


def test_a_column_whose_name_reads_as_a_difference_is_shown_in_backticks(table):
    with pytest.raises(errors.ColumnError) as raised:
        mapped(table | {"q-fp": table["q"]}, "N=Model Size,D=flop,P=b,delta=2*q-fpp")
    assert "backticks" not in str(raised.value)
    with pytest.raises(errors.ColumnError, match=r"delta=2\*`loss-after`"):
        mapped(table | {"loss-after": table["q"]}, "N=Model Size,D=flop,P=b,delta=2*loss-after")


def test_a_name_that_nothing_reads_is_refused(table):
    asked = [KumarPTQ()]
    with pytest.raises(errors.ColumnError, match=r"got 'bitz' .* did you mean 'bits'"):
        unread(asked, {"bitz": "b"}, table)
    assert unread(asked, {"C": "flop", "D": "C/6", "bits": "b", "se": "b", "run": "b"}, table) == []
    assert unread(asked, {"loss": "fp"}, table) == ["loss = fp is given, but not read by any of: kumar_ptq"]


@pytest.mark.parametrize(("row", "value"), [(4, 30.0), (7, 999.0), (9, 1e13)])
def test_a_single_count_in_another_unit_is_named_by_row_and_column(table, row, value):
    table["Model Size"][row] = value
    with pytest.raises(errors.UnitsError) as raised:
        mapped(table, COLUMNS.replace("D=flop/(6*N)", "D=flop"))
    assert f"N = Model Size is in another unit in some rows than in others, by its size | got {value:.4g} in row " in (
        str(raised.value)
    )
    assert f"in row {row + 1}, the median being" in str(raised.value)


def test_a_threshold_for_a_loss_without_one_is_refused():
    assert make_loss("log-huber", 0.01).k == 0.01
    for name in ("squared", "lad", "log-squared", "log-lad"):
        with pytest.raises(errors.OptionError, match="no huber_delta"):
            make_loss(name, 1.0)


def test_the_steps_behind_intervals_are_public():
    law = Chinchilla()
    data = laws.simulate(
        law, laws.KUMAR_2024, laws.grid({"N": (3e7, 6e7, 2e8), "D": (1e9, 4e9, 8e9, 2e10)}), noise=1e-3
    )
    found = laws.minimum(law, data)
    ends = laws.profile_intervals(found, data["loss"], 0.9)
    assert ((ends[:, 0] < found.point) & (found.point < ends[:, 1])).all()
    assert laws.leverage(found.problem, found.point, data["loss"]).sum() == pytest.approx(5)
    assert laws.held_out(law, data, by="D").status.kind == "ok"


def written(values, unit):
    """Counts as people write them, in an object column."""
    return np.array([f"{value / {'M': 1e6, 'B': 1e9}[unit]:g}{unit}" for value in values.tolist()], object)


@pytest.mark.parametrize(
    "columns", ["P=b,delta=q-fp", "N=params,D=tokens,P=b,delta=q-fp", "N=1*params,D=2*tokens/2,P=b,delta=q-fp"]
)
def test_parameters_and_tokens_may_be_written_with_suffixes(table, columns):
    N, D = table["Model Size"], table["flop"] / 6 / table["Model Size"]
    table |= {"params": written(N, "M"), "tokens": written(D, "B")}
    data = mapped(table, columns)
    assert data["N"] == pytest.approx(N)
    assert data["D"] == pytest.approx(D)


@pytest.mark.parametrize("cell", ["10 miles", "1e", "M", "10MM", "ten"])
def test_what_is_no_count_is_refused_with_its_row(table, cell):
    table["params"] = written(table["Model Size"], "M")
    table["params"][3] = cell
    with pytest.raises(errors.TextColumnError, match=r"in row 4") as raised:
        mapped(table, "D=flop,P=b,delta=q-fp")
    assert repr(cell) in str(raised.value)


def test_suffixes_are_for_counts_alone(table):
    table["b"] = np.array([f"{bits:g}B" for bits in table["b"]], object)
    with pytest.raises(errors.TextColumnError, match="holds text"):
        mapped(table)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("N > 1M", [0, 1]),
        ("N <= .5k or N == 2_000k", [0, 1]),
        ("2.5B / 1e9", 2.5),
        ("`4B` + 1", [2, 3]),
        ("x1M * 2", [4, 6]),
    ],
)
def test_counts_in_expressions_may_have_suffixes(text, value):
    columns = {"N": np.array([1e6, 2e6]), "4B": np.array([1.0, 2.0]), "x1M": np.array([2.0, 3.0])}
    np.testing.assert_array_equal(evaluate(text, columns.__getitem__), value)
    assert evaluate("name == '1M'", lambda name: np.array(["1M"], object), condition=True).tolist() == [True]
