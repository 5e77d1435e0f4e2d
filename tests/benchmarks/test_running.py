"""Contract: what runs the benchmarks, stores their results and takes their times apart."""

import json
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import memory, pieces, solver, solver_parts, subjects
from benchmarks.breakdown import PASSES, Breakdown
from benchmarks.harness import ROOT, Claim, Outcome, Setup
from benchmarks.report import LEFT_OUT, left_out, save, write_page
from benchmarks.sweep import overhead, run_sweep
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import make_plan
from quantizers import Scheme, get_quantizer, gptq
from quantizers.gptq.solve import CarriedError
from tests.benchmarks.facts import FACTS

MET = Claim("one number", 1.0, 1.0, 1.0, 2.0)
MISSED = Claim("another number", 3.0, 3.0, 3.0, 2.0)


def stored(out, outcome):
    return save(out, "one", "command", outcome, FACTS, 1.0).name


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(outcomes by name, *flags): the exit code of the program with these benchmarks; an exception is raised."""

    def call(outcomes, *flags):
        def module(name):
            def measure(setup):
                outcome = outcomes[name.removeprefix("benchmarks.")]
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome

            return SimpleNamespace(measure=measure)

        monkeypatch.setattr(program, "import_module", module)
        monkeypatch.setattr(program, "use_cores", lambda count: None)
        names = [word for name in outcomes for word in ("--only", name)]
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path), *names, *flags])
        return program.main()

    return call


@pytest.mark.parametrize("error", [RuntimeError("broken\nin detail"), SystemExit("no demo"), KeyError("name")])
def test_a_benchmark_that_fails_is_told_in_one_line_and_the_others_go_on(run, tmp_path, capsys, error):
    assert run({"codes": error, "delta": Outcome([MET])}) == 1
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("codes: ")]
    assert printed == [f"codes: failed, {type(error).__name__}: {str(error).splitlines()[0]}"]
    assert not (tmp_path / "codes.json").exists()
    assert json.loads((tmp_path / "delta.json").read_text())["claims"][0]["met"] is True


def test_a_missed_limit_is_named_and_fails_only_when_asked_to(run, capsys):
    assert run({"codes": Outcome([MET, MISSED])}) == 0
    assert "limit missed: codes: another number" in capsys.readouterr().err.splitlines()
    assert run({"codes": Outcome([MET, MISSED])}, "--check") == 1
    assert run({"codes": Outcome([MET])}, "--check") == 0


def test_what_was_left_out_is_told_and_is_no_failure(run, tmp_path, capsys):
    assert run({"codes": Outcome([MET]), "grid": Outcome(details={LEFT_OUT: "no package"})}, "--check") == 0
    assert "grid: left out: no package" in capsys.readouterr().err.splitlines()
    assert "Left out: no package." in (tmp_path / "README.md").read_text().splitlines()


@pytest.mark.parametrize(("given", "found"), [("a", ["a"]), (["a", "b"], ["a", "b"]), (None, [])])
def test_one_sentence_or_several_say_what_was_left_out(given, found):
    assert left_out({LEFT_OUT: given} if given else {}) == found


def test_a_result_is_not_replaced_by_one_that_measured_less(tmp_path):
    assert stored(tmp_path, Outcome([MET, MISSED])) == "one.json"
    before = (tmp_path / "one.json").read_bytes()
    for less in (Outcome(details={LEFT_OUT: "no package"}), Outcome([MET]), Outcome()):
        assert stored(tmp_path, less) == "one.partial.json"
        assert (tmp_path / "one.json").read_bytes() == before
    stored(tmp_path, Outcome(details={LEFT_OUT: "no package"}))
    page = write_page(tmp_path, ("one",))
    assert "| another number |" in page
    assert "A later run (t, `one.partial.json`) measured less: no package." in page

    assert stored(tmp_path, Outcome([MET, MET])) == "one.json"
    assert (tmp_path / "one.json").read_bytes() != before
    assert not (tmp_path / "one.partial.json").exists()


def test_a_result_of_tables_alone_is_kept_too_and_an_empty_one_is_not(tmp_path):
    table = Outcome(details={"a table": {"columns": ["x"], "rows": [[1.0]]}})
    assert stored(tmp_path, Outcome(details={LEFT_OUT: "no package"})) == "one.json"
    assert stored(tmp_path, table) == "one.json"
    assert stored(tmp_path, Outcome(details={LEFT_OUT: "no package"})) == "one.partial.json"
    assert stored(tmp_path, table) == "one.json"


def test_a_machine_without_control_groups_is_told(monkeypatch, tmp_path):
    def refuse(cap):
        raise PermissionError(13, "Permission denied", "/sys/fs/cgroup/somewhere")

    monkeypatch.setattr(memory, "control_group", refuse)
    monkeypatch.setattr(memory, "write_model", lambda folder, layers: 1600)
    monkeypatch.setattr(memory, "write_tokens", lambda root: None)
    outcome = memory.measure(Setup(tmp_path))
    assert not outcome.claims
    assert left_out(outcome.details) == ["no control group can be made here (Permission denied)"]


def test_overhead_is_what_is_neither_a_pass_nor_scoring():
    seconds = {"forward passes": 8.0, "calibration passes": 2.0, "scoring": 3.0, "load": 0.5, "quantize: rtn": 1.0}
    parts = {part: {"wall": wall} for part, wall in seconds.items()}
    assert overhead(parts) == pytest.approx(0.15)
    assert overhead(parts, "scoring") == pytest.approx(0.45)
    del parts["calibration passes"]
    assert overhead(parts) == pytest.approx(1.5 / 8)


def test_the_parts_of_a_sweep_are_all_of_it(tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 32}
    checkpoint, text, calibration = subjects.random_llama(tmp_path, 4, **shape)
    texts = {"eval_text": str(text), "calib_text": str(calibration), "seq_len": 32}
    config = RunConfig(bits=(3, 4), group_size=32, eval_windows=4, calib_windows=4, **texts)
    work = make_plan([checkpoint], config).workloads[0]
    parts = Breakdown()
    with parts.watching():
        run_sweep(work)
    shares = parts.shares()
    named = {*PASSES, "scoring", "load", "statistics", "quantize: gptq", "dequantize", "store", "bookkeeping"}
    assert named <= set(shares)
    assert sum(times["wall_share"] for times in shares.values()) == pytest.approx(1)
    assert all(times["wall"] > 0 for times in shares.values())
    assert 0 < overhead(shares) < overhead(shares, "scoring")


def test_the_price_of_four_bit_widths_by_operations():
    assert solver_parts.bound(4096, 4096, 4) == pytest.approx(3.25)
    assert solver_parts.bound(100, 1500, 4) == pytest.approx(1.5)
    assert solver_parts.bound(300, 700, 1) == 1
    factor, products = solver_parts.operations(3, 6, 2)
    assert (factor, products) == (72, 216)


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_of_a_solve_are_found_in_every_thread(threads, monkeypatch):
    weight, stats = solver.layer(1024, 384, "cpu")
    seen = set()
    original = CarriedError.into
    note = lambda self, *args: seen.add(threading.get_ident()) or original(self, *args)
    monkeypatch.setattr(CarriedError, "into", note)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = solver_parts.parts_of(lambda: get_quantizer("gptq").quantize(weight, Scheme(4, 128), stats), 1)
    finally:
        torch.set_num_threads(before)
    assert len(seen) == threads
    assert list(found) == [*dict.fromkeys(part for part, _, _ in solver_parts.PARTS), "rest"]
    assert all(found[part] > 0 for part in found if part != "rest")
    assert CarriedError.into is note, "the wrappers are gone afterwards"


def test_a_part_within_another_belongs_to_the_outer_one():
    _, stats = solver.layer(1, 600, "cpu")
    hessian = stats.hessian
    found = solver_parts.parts_of(lambda: gptq.damped_factor(hessian, 0.01, hessian.diagonal().mean()), 1)
    assert found["factor"] > 0
    assert found["inverses of its blocks"] == 0, "the factor solves triangular systems too"


def test_the_table_of_parts_has_their_sums_and_the_bound():
    one = {"factor": 1.0, "products": 3.0, "scales": 0.0}
    four = {"factor": 1.0, "products": 12.0, "scales": 1.0}
    rows = {row[0]: row[1:] for row in solver_parts.table_of(512, 512, one, four, 4)["rows"]}
    assert rows["products"] == [3.0, 12.0, 4.0]
    assert rows["scales"] == [0.0, 1.0, None]
    assert rows["sum"] == [4.0, 14.0, 3.5]
    assert rows["10⁹ operations, both"][2] == pytest.approx(3.25)


def test_a_rehearsal_trains_for_seconds_and_training_is_announced(monkeypatch, tmp_path, capsys):
    commands = []

    def pretend(command, **options):
        commands.append(command)
        (tmp_path / "subject-llama-5m").mkdir(exist_ok=True)
        (tmp_path / "subject-llama-5m-rehearsal").mkdir(exist_ok=True)

    monkeypatch.setattr(subjects, "FOLDER", tmp_path)
    monkeypatch.setattr(subjects.subprocess, "run", pretend)
    monkeypatch.setattr(subjects, "discover", lambda places: [])
    monkeypatch.setattr(subjects, "verify_all", lambda checkpoints: list(checkpoints))
    for quick in (False, True, True):
        subjects.trained_llama(quick)
    most = [max(map(float, command[command.index("--ratios") + 1].split(","))) for command in commands]
    assert len(most) == 2, "the second rehearsal finds what the first has trained"
    assert most[1] < most[0] / 20
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "some minutes …",
        "some seconds …",
    ]


@pytest.mark.slow
def test_single_functions_are_timed_without_a_trace_of_the_machine(tmp_path):
    outcome = pieces.measure(Setup(tmp_path, quick=True))
    rows = outcome.details["single functions"]["rows"]
    assert all(row[0].startswith("test_dequantize") and 0 < row[4] <= row[1] for row in rows)
    text = json.dumps(outcome.details)
    assert rows
    assert str(ROOT) not in text
    assert socket.gethostname() not in text
