"""Contract: what `ptq-eval submit` writes and refuses where there is no SLURM, or one that only says no."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from ptq_eval.config.cluster import RemoteConfig, SlurmConfig
from ptq_eval.errors import ClusterError, DeviceError, NothingToFitError, OptionError, OutputFullError
from ptq_eval.jobs import process, slurm
from ptq_eval.jobs.files import read_job
from ptq_eval.jobs.submit import retry, submit
from ptq_eval.results.store import Store
from tests.cli.support import mounted
from tests.support.numbers import numbers
from tests.support.processes import environ


@pytest.fixture
def without_slurm(monkeypatch):
    monkeypatch.setattr(slurm, "shutil", SimpleNamespace(which=lambda name: None))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(name, script): a program of this name on the PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")

    def write(name, script):
        path = place / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


@pytest.mark.slow
def test_a_dry_run_writes_a_script_whose_tasks_measure_everything(trajectory, small, tmp_path, without_slurm):
    out = tmp_path / "my out"
    asked = {"partition": "gpu", "time": "2:00:00", "cpus": 2, "mem": "8G", "account": "lab", "array_limit": 2}
    asked |= {"exclude": (400,), "sbatch_option": {"qos": "long", "comment": "a b"}}
    found = submit(trajectory, out, dry_run=True, **asked, **small)
    assert (found.count, found.job) == (2, "")
    script = (found.folder / "measure.sh").read_text()
    for line in (
        "--array=0-1%2", "--partition=gpu", "--time=2:00:00", "--cpus-per-task=2", "--mem=8G", "--account=lab",
        "--qos=long", "--comment='a b'", "--requeue",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "--gpus" not in script
    for number in range(2):
        environment = environ(SLURM_ARRAY_TASK_ID=str(number))
        done = subprocess.run(["bash", found.folder / "measure.sh"], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert len(numbers(out)) == 10
    done = subprocess.run(["bash", found.folder / "report.sh"], env=environ(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "fit.json").read_text())
    assert retry(out, dry_run=True).count == 0


def test_jobs_with_gpus_are_planned_where_there_is_none(trajectory, small, tmp_path, without_slurm):
    found = submit(trajectory, tmp_path / "out", dry_run=True, gpus=2, **{**small, "device": "auto"})
    assert "#SBATCH --gpus=2\n" in (found.folder / "measure.sh").read_text()
    job, conditions = read_job(found.folder / "0000.json")
    assert (conditions.device, {trial.device for trial in job.missing}) == ("cuda", {"cuda"})
    assert RemoteConfig.having({"device": "auto"}, 0).resolve_device() == "cpu"
    with pytest.raises(DeviceError, match="devices of its own node"):
        RemoteConfig.having({"device": "cuda:1"}, 1)


@pytest.mark.slow
def test_a_retry_has_what_no_record_holds_and_may_change_what_is_asked(
    trajectory, small, tmp_path, monkeypatch, without_slurm
):
    out = tmp_path / "out"
    found = submit(trajectory, out, dry_run=True, time="10", mem="1G", **small)
    job, _ = read_job(found.folder / "0001.json")
    monkeypatch.setattr(process, "end_with", lambda _: None)  # a task ends with the process that started it
    process.work([found.folder / "0001.json"], out, (1, 1), "slurm-1-1", lambda _: None)
    again = retry(out, dry_run=True, mem="4G")
    script = (again.folder / "measure.sh").read_text()
    assert (again.folder.name, again.count) == ("2", 2)
    assert "--mem=4G" in script
    assert "--time=10" in script
    stored = {trial.key() for trial in job.missing}
    for path in again.folder.glob("0*.json"):
        assert not stored & {trial.key() for trial in read_job(path)[0].missing}


def test_tasks_in_the_queue_are_not_submitted_again(trajectory, small, tmp_path, fake):
    out = tmp_path / "out"
    fake("sbatch", "echo 7")
    fake("squeue", "true")
    first = submit(trajectory, out, **small)
    assert (first.job, first.report) == ("7", "7")
    fake("squeue", f"echo '1 {slurm.job_name(first.folder)}'; echo 'N/A other'")
    assert retry(out).count == 2


def test_no_sbatch_is_one_line_before_any_weight_is_read(trajectory, small, tmp_path, without_slurm):
    with pytest.raises(ClusterError, match=r"sbatch is not on the PATH \| remedy: .*--dry-run"):
        submit(tmp_path / "no such folder", tmp_path / "out", **small)
    assert not (tmp_path / "out").exists()
    submit(trajectory, tmp_path / "out", dry_run=True, **small)
    with pytest.raises(ClusterError, match="sbatch is not on the PATH"):
        retry(tmp_path / "out")


def test_what_sbatch_refuses_is_one_line(trajectory, small, tmp_path, fake):
    fake("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(ClusterError, match=r"refuses the job \| got .*partition specified: nope \| remedy"):
        submit(trajectory, tmp_path / "out", partition="nope", **small)


def test_a_report_that_is_refused_is_a_problem_beside_the_jobs(trajectory, small, tmp_path, fake):
    fake("sbatch", 'case "$*" in *dependency*) echo no >&2; exit 1;; *) echo 12;; esac')
    found = submit(trajectory, tmp_path / "out", **small)
    assert (found.job, found.report) == ("12", "")
    assert "the report is refused | got no" in str(found.problems[0])


def test_wrong_requests(trajectory, small, tmp_path, without_slurm):
    with pytest.raises(NothingToFitError, match="nothing was submitted"):
        retry(tmp_path)
    with pytest.raises(OptionError, match="--jobs is for one machine"):
        submit(trajectory, tmp_path / "out", jobs=2, **small)
    for name, value in {"partition": "a b", "time": "", "sbatch_option": "qos"}.items():
        with pytest.raises(OptionError):
            SlurmConfig(**{name: value})
    with pytest.raises(OptionError, match="twice"):
        SlurmConfig(sbatch_option=("qos=a", "--qos=b"))
    with pytest.raises(OptionError):
        SlurmConfig(sbatch_option="qos=a\n#SBATCH --x")


def test_an_output_folder_that_cannot_be_written(trajectory, small, tmp_path, without_slurm):
    (tmp_path / "locked").mkdir()
    with mounted(tmp_path / "locked", "ro") as folder, pytest.raises(OutputFullError, match="cannot be written"):
        submit(trajectory, folder / "out", dry_run=True, **small)


@pytest.mark.slow
def test_a_task_that_cannot_measure_ends_with_the_code_of_its_error(trajectory, small, tmp_path, without_slurm):
    found = submit(trajectory, tmp_path / "out", dry_run=True, **small)
    path = found.folder / "0000.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "folder": str(tmp_path / "gone")}))
    environment = environ(SLURM_ARRAY_TASK_ID="0")
    done = subprocess.run(["bash", found.folder / "measure.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode not in (0, 1)
    assert done.stderr.count("\n") == 1
    assert {m.status for m in Store(tmp_path / "out").measurements()} == {"failed"}
