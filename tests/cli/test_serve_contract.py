"""Contract: `ptq-eval serve`: the page of a folder while it fills, for this machine alone, and what is refused."""

import json
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from ptq_eval import errors
from ptq_eval.cli.server import bind
from ptq_eval.report.web.live import Folder
from ptq_eval.results.store import Store
from tests.cli.support import start


@contextmanager
def served(folder):
    """get(path, **headers) -> (status, headers, text) of a server of `folder`."""
    with bind(Folder(folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def get(path="/", data=None, **headers):
            address = f"http://127.0.0.1:{server.server_address[1]}{path}"
            request = urllib.request.Request(address, data=data, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.headers, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.headers, ""

        try:
            yield get
        finally:
            server.shutdown()
            thread.join()


def shortened(out, lines):
    """The folder as it was when only so many records were written; the other records."""
    [path] = (out / "records").glob("*.jsonl")
    every = path.read_text().splitlines(keepends=True)
    path.write_text("".join(every[:lines]))
    (out / "fit.json").unlink()
    return path, every[lines:]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_notes_what_it_is_about_to_measure(out):
    store = Store(out)
    planned = store.planned()
    assert sorted(planned) == ["tiny@100", "tiny@200", "tiny@300"]
    assert set().union(*planned.values()) == store.keys()


def test_the_page_grows_with_the_records(out):
    path, others = shortened(out, 5)
    before = contents(out)
    with served(out) as get:
        state = json.loads(get("/progress.json")[2])
        assert "5 of 9 measurements" in state["banner"]
        assert re.search(
            r"tiny@200</td><td class=\"right\">2</td><td class=\"right\">0</td><td class=\"right\">3", state["banner"]
        )
        status, headers, text = get()
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (
            200,
            "text/html; charset=utf-8",
            "no-store",
        )
        assert f'data-version="{state["version"]}"' in text
        assert "The answer and the fits follow when the run ends." in text
        assert 'id="the-answer"' not in text
        assert 'id="degradation"' in text
        assert "connect-src 'self'" in text
        assert contents(out) == before
        with path.open("a") as file:
            file.write(others[0] + others[1][:50])  # and a line that is being written
        later = json.loads(get("/progress.json")[2])
        assert later["version"] != state["version"]
        assert "6 of 9 measurements" in later["banner"]
        assert f'data-version="{later["version"]}"' in get()[2]


def test_a_finished_folder_has_its_answer(out):
    with served(out) as get:
        text = get()[2]
    assert "9 of 9 measurements" in text
    assert 'id="the-answer"' in text
    assert "follow when the run ends" not in text


def test_an_older_folder_has_no_plan_and_is_shown(out):
    for path in (out / "planned").iterdir():
        path.unlink()
    with served(out) as get:
        assert "9 measurements, of an unknown number" in get()[2]


def test_a_folder_without_records_waits(tmp_path):
    (tmp_path / "<i>out").mkdir()
    with served(tmp_path / "<i>out") as get:
        text = get()[2]
        assert "No measurement yet in" in text
        assert "&lt;i&gt;out" in text
        assert "<i>" not in text.split('<script type="application/json"')[0]
        Store(tmp_path / "<i>out").write_plan({"run@1": ["a", "b"]})
        assert "0 of 2 measurements" in json.loads(get("/progress.json")[2])["banner"]
        (tmp_path / "<i>out" / "run.json").write_text("{")
        assert "run.json of the output folder is damaged" in get()[2]


def test_failed_trials_are_counted_apart(out):
    [path] = (out / "records").glob("*.jsonl")
    *kept, last = path.read_text().splitlines()
    failed = {**json.loads(last), "status": "failed", "message": "no memory"}
    path.write_text("\n".join([*kept, json.dumps(failed)]) + "\n")
    with served(out) as get:
        assert "9 of 9 measurements, 1 failed" in json.loads(get("/progress.json")[2])["banner"]


def test_only_the_page_is_served_and_only_to_this_machine(out):
    with served(out) as get:
        assert get("/run.json")[0] == get("/../run.json")[0] == get("/records/worker-1-of-1.jsonl")[0] == 404
        assert get("/", data=b"x")[0] == 501
        assert get("/", Host="example.com:80")[0] == get("/progress.json", Host="example.com")[0] == 403
        assert get("/progress.json", Host="localhost:80")[0] == 200


def test_a_missing_folder_is_refused(ptq_eval):
    ptq_eval("serve", "nowhere").refuses(errors.EmptyFolderError.exit_code, "nowhere", "ptq-eval run FOLDER -o nowhere")


def test_a_port_in_use_is_refused(ptq_eval, out):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ptq_eval("serve", out, "--port", str(port)).refuses(2, "--port cannot be used", str(port), "choose another")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(ptq_eval, out, port):
    ptq_eval("serve", out, "--port", port).refuses(2, "--port", port)


def test_ctrl_c_ends_it_cleanly(out):
    process = start("serve", out)
    try:
        first = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", first)[0]
        with urllib.request.urlopen(address + "progress.json", timeout=60) as answer:
            assert "9 of 9" in json.load(answer)["banner"]
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, complaint) == (0, "")
    assert said == "Ended; nothing was changed.\n"
