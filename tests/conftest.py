"""What tests share: a tiny tokenizer, saved models, a trajectory with its texts.

Every test process uses one thread: the suite itself runs in parallel, and results must not depend on it.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does; the few tests with two threads share cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the processes that tests start need not compile the package each time

import pytest

from ptq_eval.measure.memory import keep_freed_memory
from tests.support import models as core_models
from tests.support.processes import environ

PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")
"""A PNG of one white pixel."""

keep_freed_memory()  # as the command line does: the models of these tests are small


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow 2/4` runs the second quarter of the tests marked `slow`, 0/1 none of them; by default all run."""
    parser.addoption("--slow", default="1/1", metavar="K/N", help="of the slow tests run part K of N (0/1: none)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the slow tests of other parts.  Files with more slow tests come first, then those with more tests: the
    processes of `make test` take file after file in this order, and none should be left alone with a long one at the
    end."""
    part, parts = map(int, config.getoption("--slow").split("/"))
    others = [
        item for item in items if item.get_closest_marker("slow") and crc32(item.nodeid.encode()) % parts != part - 1
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
    count = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], -count[item.path], str(item.path)))


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: the garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, here as in the subprocesses: bit-identity is asked across them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def whole_pictures():
    """The kinds of files that figures are drawn into, at the moment.  A figure is made with all its parts, but files of
    other kinds are empty ones: laying out and drawing the PNG takes a third of a report, the fonts of the PDF as long.
    Figures of other processes are drawn whole."""
    from ptq_eval.report.common import figures

    kinds_drawn, empty = set(), {"png": PIXEL, "pdf": b"%PDF-1.4"}

    def saved(figure, kinds):
        for kind in kinds:
            yield from drawn(figure, (kind,)) if kind in kinds_drawn else [(kind, empty[kind])]

    drawn = figures.saved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "saved", saved)
        yield kinds_drawn


@pytest.fixture(autouse=True)
def drawn_in_this_test(request, whole_pictures):
    """Those that the test names in `drawn`; fixtures that several tests share have none."""
    if mark := request.node.get_closest_marker("drawn"):
        whole_pictures.update(mark.args)
    yield
    whole_pictures.clear()


@pytest.fixture(scope="session")
def source() -> str:
    """Some English and Python that every machine has: the text of a module with much of both."""
    return Path(argparse.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizer(source):
    """A byte-level tokenizer of the models' vocabulary."""
    from ptq_eval.pretrain.data import train_tokenizer

    return train_tokenizer(source[:40_000], core_models.VOCAB)


@pytest.fixture(scope="session")
def texts(source, tmp_path_factory):
    """Two text files without a common line: `evaluation` and `calibration`, each of some 200 windows of 32 tokens."""
    folder, half = tmp_path_factory.mktemp("texts"), len(source) // 2
    for name, start in (("evaluation", 0), ("calibration", half)):
        (folder / f"{name}.txt").write_text(source[start : start + 10_000], encoding="utf-8")
    return SimpleNamespace(evaluation=str(folder / "evaluation.txt"), calibration=str(folder / "calibration.txt"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory, tokenizer):
    """saved(architecture) -> the folder of one checkpoint; each architecture is built once."""
    folders: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in folders:
            folder = tmp_path_factory.mktemp(architecture) / "checkpoint-100"
            folders[architecture] = core_models.save(folder, core_models.build(architecture, seed=1), tokenizer)
        return folders[architecture]

    return get


@pytest.fixture(scope="session")
def trajectory(tmp_path_factory, tokenizer):
    """A run of three tiny Llama checkpoints with known D."""
    root = tmp_path_factory.mktemp("trajectory") / "small"
    for index, step in enumerate((100, 200, 400)):
        model = core_models.build("llama", seed=index)
        core_models.save(root / f"checkpoint-{step}", model, tokenizer, tokens=step * 1000)
    return root


@pytest.fixture(scope="session")
def small(texts):
    """Options of a run that takes a second a checkpoint."""
    return {
        "quantizers": ("rtn", "gptq"),
        "bits": (3, 4),
        "group_size": 16,
        "eval_text": texts.evaluation,
        "calib_text": texts.calibration,
        "seq_len": 32,
        "eval_windows": 8,
        "calib_windows": 4,
        "bootstrap": 10,
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def complete(trajectory, small, tmp_path_factory):
    """(output folder, result) of an uninterrupted run with its report."""
    import ptq_eval

    out = tmp_path_factory.mktemp("complete") / "out"
    return out, ptq_eval.run(trajectory, out, **small)


@pytest.fixture
def measure(trajectory, small, tmp_path):
    """measure(folder=trajectory, **changed options) -> the result, measured into one output folder, no report."""
    import ptq_eval

    def run(folder=trajectory, **changes):
        return ptq_eval.run(folder, tmp_path / "out", write_report=False, **{**small, **changes})

    return run


@pytest.fixture(scope="session")
def python():
    """python(*arguments, **environment) -> a finished process of this interpreter, on one thread."""

    def call(*arguments, cwd=None, **environment):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environ(**environment),
            check=False,
            timeout=300,
        )

    return call


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, an empty cache, and the environment of processes that ask it."""
    from huggingface_hub import constants

    from tests.support.hub import LocalHub

    with LocalHub() as made:
        cache = tmp_path / "hf" / "hub"
        for name, value in (
            ("ENDPOINT", made.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_CACHE", str(cache)),
        ):
            monkeypatch.setattr(constants, name, value)
        made.cache = cache
        made.environment = {"HF_ENDPOINT": made.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture(scope="session")
def revisions(tmp_path_factory, tokenizer):
    """Folders of six small checkpoints by the names of Pythia's revisions, with one tokenizer."""
    root = tmp_path_factory.mktemp("revisions")
    made = {}
    for place, step in enumerate((0, 1, 8, 64, 512, 1000)):
        folder = root / f"step{step}"
        made[folder.name] = core_models.save(folder, core_models.build("llama", seed=place), tokenizer)
    return made
