"""Golden: the notebook in `examples/` runs from top to bottom, and what it loads is what the records hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import ptq_eval
from ptq_eval.results.store import Store

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "examples" / "results.ipynb"
CHECK = """
import json
kls = windows.group_by("quantizer", "bits").agg(kl=pl.col("kl").sum() / pl.col("tokens").sum())
losses = duckdb.sql(f"SELECT key, SUM(nll) / SUM(tokens) AS loss FROM '{data}/windows.parquet' GROUP BY ALL").df()
print(json.dumps([len(table), kls.rows(), losses.values.tolist(), len(hardest)]))
"""


def test_the_stored_notebook_was_executed_without_an_error():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 7
    for cell in cells:
        compile("".join(cell["source"]), NOTEBOOK.name, "exec")
        assert cell["outputs"], cell["source"]
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.notebook
def test_the_notebook_runs_on_a_finished_folder(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    options = {"quantizers": ("rtn", "gptq"), "bits": (2, 3), "group_size": 16, "eval_windows": 32, "calib_windows": 8}
    run = ROOT / "examples" / "trajectory" / "llama-40k"
    ptq_eval.run(run, tmp_path / "demo-output", write_report=False, bootstrap=10, **options)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    rows, kls, losses, n_windows = json.loads(notebook.cells[-1].outputs[0]["text"])

    kept = Store(tmp_path / "demo-output").measurements()
    assert rows == len(kept) == 10 * (1 + 4)
    assert n_windows == 32
    expected = {m.trial.key(): math.fsum(m.nll) / sum(m.n_tokens) for m in kept}
    assert dict(map(tuple, losses)) == pytest.approx(expected, rel=1e-12)
    assert len(kls) == 4
    for quantizer, bits, kl in kls:
        own = [m for m in kept if (m.trial.quantizer, m.trial.bits) == (quantizer, bits)]
        assert kl == pytest.approx(sum(map(math.fsum, (m.kl for m in own))) / sum(sum(m.n_tokens) for m in own))
    figures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("data")]
    assert sum("image/png" in output["data"] for output in figures) == 1
