"""Contract and property: tables out of files of every dialect are read as meant, or refused with the remedy."""

import gzip
import json
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval import errors
from ptq_eval.laws.tables.delimited import Dialect
from ptq_eval.laws.tables.files import flattened, read_table

ROWS = [
    {"N": 1e8, "D": 2e9, "loss": 3.5, "args": {"lr": 1e-3, "opt": {"name": "adam"}}, "seed": 2**70 + i} for i in (0, 1)
]


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("form", ["array", "object", "lines", "gz"])
def test_json_of_every_form_is_one_table(tmp_path, form):
    if form == "array":
        path = written(tmp_path, "t.json", json.dumps(ROWS))
    elif form == "object":
        path = written(tmp_path, "t.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))
    elif form == "lines":
        path = written(tmp_path, "t.jsonl", "\n".join(map(json.dumps, ROWS)))
    else:
        path = tmp_path / "t.json.gz"
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    table = read_table(path)
    assert table["args.lr"].tolist() == [1e-3, 1e-3]
    assert table["args.opt.name"].tolist() == ["adam", "adam"]
    assert table["loss"].tolist() == [3.5, 3.5]
    assert table["seed"].tolist() == [float(2**70)] * 2


def test_fields_of_fields_in_parquet_have_dotted_names(tmp_path):
    frame = pd.DataFrame({"loss": [3.0, 4.0], "args": [{"lr": 1e-3}, {"lr": 1e-4}], "tags": [["a"], ["b", "c"]]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["args.lr"].tolist() == [1e-3, 1e-4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": [1, 2], "b": [1]}', "different lengths"),
        ('{"runs": [{"a": 1}], "made": "now"}', "save what is under 'runs' alone"),
        ("[1, 2]", "entry 1 of t.json is no object"),
        ("3", "an array of objects"),
        ("[]", "without rows"),
        ("[{", "cannot be read as json"),
        ("[" * 100_000, "cannot be read as json"),
    ],
)
def test_json_that_is_no_table_is_refused(tmp_path, content, said):
    with pytest.raises(errors.DataFileError) as raised:
        read_table(written(tmp_path, "t.json", content))
    assert said in str(raised.value)


@pytest.mark.parametrize("name", ["t.pkl", "t.pickle", "t.pkl.gz", "t.joblib"])
def test_a_pickle_is_refused_with_the_reason_and_never_opened(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("the pickle was opened",)

    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(errors.DataFileError, match=r"opening a pickle runs .* remedy: .*to_parquet"):
        read_table(tmp_path / name)


EUROPEAN = "N;D;loss\n1e8;2e9;3,5\n2e8;2e9;3,25\n"


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("t.csv", EUROPEAN, "--separator ';' --decimal ,"),
        ("t.csv", EUROPEAN.replace(",", "."), "--separator ';'"),
        ("t.csv", EUROPEAN.replace(";", "\t"), r"--separator '\t' --decimal ,"),
        ("t.csv", "a;b\n1,5;2,5\n", "--separator ';' --decimal ,"),
        ("t.tsv", "a,b\n1,2\n", "--separator ,"),
        ("t.csv", "# made by hand\na,b\n1,2\n", "--comment '#'"),
        ("t.csv", "a,b\n1,2\n# restarted\n3,4\n", "--comment '#'"),
        ("t.csv", "1,2\n3,4\n", "begin the file with a line of names"),
    ],
)
def test_another_dialect_is_refused_with_the_option_that_reads_it(tmp_path, name, text, remedy):
    with pytest.raises(errors.DataFileError) as raised:
        read_table(written(tmp_path, name, text))
    assert remedy in str(raised.value)


def test_the_options_read_what_they_are_named_for(tmp_path):
    text = "# made by hand\n" + EUROPEAN + "# the end\n"
    table = read_table(written(tmp_path, "t.csv", text), Dialect(";", ",", "#"))
    assert table["loss"].tolist() == [3.5, 3.25]
    assert table["N"].tolist() == [1e8, 2e8]


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("# a,b\n1,2\n3,4\n", Dialect()),
        ("#a,b\n1,2\n3,4\n", Dialect(comment="#")),
        ("# made by hand, by us, today\n% a,b\n1,2\n3,4\n", Dialect(comment="#")),
    ],
)
def test_names_in_a_comment_before_the_numbers_are_read(tmp_path, text, dialect):
    table = read_table(written(tmp_path, "t.csv", text), dialect)
    assert {name: values.tolist() for name, values in table.items()} == {"a": [1, 3], "b": [2, 4]}


def test_a_comment_with_another_number_of_words_is_no_header(tmp_path):
    path = written(tmp_path, "t.csv", "# made by hand\n1,2\n3,4\n")
    with pytest.raises(errors.DataFileError, match="holds no column names"):
        read_table(path, Dialect(comment="#"))


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = written(tmp_path, "t.csv", "N,loss, loss\n1,2,3\n")
    with pytest.raises(errors.DataFileError, match="two columns have the same name") as raised:
        read_table(path)
    assert "'loss' in t.csv: columns 2, 3" in str(raised.value)


def test_a_decimal_point_among_decimal_commas_is_no_number(tmp_path):
    from ptq_eval.laws.formulas.chinchilla import Chinchilla
    from ptq_eval.laws.tables.external import map_columns

    path = written(tmp_path, "t.csv", "N;D;loss\n1e8;2e9;3,5\n2e8;2e9;1.234\n")
    with pytest.raises(errors.TextColumnError, match=r"'1\.234' in row 2.*decimal comma"):
        map_columns(Chinchilla(), read_table(path, Dialect(";", ",")), {})


@pytest.mark.parametrize(
    ("dialect", "said"),
    [
        (("", ","), "needs another separator"),
        ((",", ","), "are the same"),
        ((";;",), "not one character"),
        (("", "'"), "no decimal"),
    ],
)
def test_a_dialect_that_makes_no_sense_is_refused(tmp_path, dialect, said):
    with pytest.raises(errors.OptionError, match=said):
        read_table(written(tmp_path, "t.csv", "a,b\n1,2\n"), Dialect(*dialect))


def test_rows_with_more_cells_than_names_are_refused(tmp_path):
    with pytest.raises(errors.DataFileError):
        read_table(written(tmp_path, "t.csv", "a,b\n1,2,3\n4,5,6\n"))


NUMBERS = st.floats(-1e300, 1e300).map(float)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5), st.sampled_from([";", "\t", "|"]))
def test_decimal_commas_are_read_back_or_refused_and_never_misread(tmp_path_factory, rows, separator):
    folder = tmp_path_factory.mktemp("t")
    lines = [separator.join(repr(value).replace(".", ",") for value in row) for row in rows]
    path = written(folder, "t.csv", "\n".join([separator.join("ab"), *lines]))
    table = read_table(path, Dialect(separator, ","))
    assert np.column_stack([table["a"], table["b"]]).tolist() == [list(row) for row in rows]
    with pytest.raises(errors.DataFileError):
        read_table(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_a_table_or_one_error(tmp_path_factory, value):
    path = written(tmp_path_factory.mktemp("j"), "t.json", json.dumps(value))
    try:
        table = read_table(path)
    except errors.DataFileError:
        return
    assert len({len(cells) for cells in table.values()}) == 1


@given(st.text(max_size=80), st.sampled_from(["t.csv", "t.tsv", "t.json", "t.jsonl"]))
def test_any_text_is_a_table_or_one_error(tmp_path_factory, text, name):
    path = tmp_path_factory.mktemp("x") / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_table(path)
    except errors.PtqEvalError:
        return


def test_flat_names():
    assert flattened({"a": {"b": {"c": 1}}, "d": 2, "e": {}}) == {"a.b.c": 1, "d": 2, "e": {}}


def test_only_a_line_feed_ends_a_line_of_json(tmp_path):
    rows = [{"name": "a\u2028b", "loss": 3.0}, {"name": "c\x85d", "loss": 4.0}]
    path = tmp_path / "t.jsonl"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
    assert read_table(path)["loss"].tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("runz.csv", "no such data file.*did you mean 'runs.csv'"),
        ("nowhere", "no such data file.*check the path"),
        (".", "a folder, not a data file.*ptq-eval fit"),
        ("https://example.com/runs.csv", "not fetched.*download it"),
        ("pipe.csv", "a pipe or a device, not a data file"),
    ],
)
def test_what_is_no_file_is_called_what_it_is(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").write_text("N\n1\n")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(errors.DataFileError, match=says):
        read_table(name)
