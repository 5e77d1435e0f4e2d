"""Contract: the effect of size, known from two sizes of model, has an interval nowhere in the output of a run."""

import io
import json
import re

from rich.console import Console

from ptq_eval.laws import analyse
from ptq_eval.report import render, write
from tests.report.synthetic import make_run, make_table

OF_SIZE = ("C_T", "gamma_N")


def test_two_sizes_of_model_give_no_interval_in_any_file(tmp_path):
    table = make_table(quantizers=("rtn",), ratios=(5, 13, 32, 80, 200), bits=(2, 3, 4))
    run = make_run(table)
    write(tmp_path, table, analyse(table.to_dict("records"), {}, n_boot=10), run)
    fits = json.loads((tmp_path / "fit.json").read_text())["fits"]
    found = [entry["parameters"] for entry in fits if "gamma_N" in entry["parameters"]]
    assert found
    for constants in found:
        assert all(constants[name]["low"] is None and constants[name]["high"] is None for name in OF_SIZE)
        assert constants["gamma_D"]["low"] is not None
    console = Console(file=io.StringIO(), width=1000)
    console.print(render(table, json.loads((tmp_path / "fit.json").read_text()), run))
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".md", ".tex", ".csv", ".json")]
    texts.append(console.file.getvalue())
    values = [re.findall(r"(C_T|gamma_N|gamma_D) = [^\s,]+( \[)?", text.replace("\\_", "_")) for text in texts]
    assert sum(("gamma_D", " [") in own for own in values) >= 2  # the page and the terminal
    assert not [name for own in values for name, interval in own if interval and name in OF_SIZE]
