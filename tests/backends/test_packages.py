"""The real packages, each in an environment of its own: `make backends-test`, which installs what is missing.

Which are tried is chosen by name: `make backends-test BACKENDS="hqq or torchao"`.
"""

import pytest
import torch

from ptq_eval import plugins
from ptq_eval.backends.environments import State, backend_of, install, status_of
from ptq_eval.measure.foreign.conformance import Finding, check

pytestmark = [pytest.mark.backends, pytest.mark.slow, pytest.mark.timeout(1800)]

FAULTY = {"autoawq": {"awq": Finding.LARGE_ERROR}} if not torch.cuda.is_available() else {}
"""What the conformance run must find: on a CPU autoawq's search works on a view of the live weights."""

SAME = {
    "bitsandbytes": ("nf4", "fp4", "int8"),
    "gguf": ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    "torchao": ("intx", "int4", "int8", "fp8"),
    "llmcompressor": ("rtn",),
    "optimum-quanto": ("rtn", "int8", "fp8"),
}
"""Methods that round to nearest as our formats of these names do: the same error to a few percent."""


@pytest.fixture
def home():
    """The user's own folder of environments, so that they are built once."""


@pytest.mark.parametrize("name", plugins.names("backends"))
def test_a_package_passes_its_conformance_run_or_is_refused_with_the_reason(name):
    backend = backend_of(name)
    if status_of(backend).state not in (State.HERE, State.INSTALLED, State.UNSUPPORTED):
        install(name)
    status = status_of(backend)
    if backend.device == "cuda" and not torch.cuda.is_available():
        assert status.state is State.UNSUPPORTED
        assert "needs CUDA" in status.why_not
        assert "gptqmodel" in backend.remarks
        return
    found = {one.method: one for one in check(name)}
    assert {m: one.message for m, one in found.items() if one.finding != FAULTY.get(name, {}).get(m)} == {}
    for method in SAME.get(name, ()):
        assert found[method].ratio == pytest.approx(1, abs=0.05), method
