"""Oracle: every compiled version of an inner loop gives the codes of the plain one; architecture: who runs where."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from quantizers import LayerStats, Scheme, get_quantizer, kernels
from quantizers.errors import SlowKernelWarning
from quantizers.kernels import Block, cpu, plain
from quantizers.testing import sample_layer

ROWS = 70  # not a multiple of any tile


def block(columns, groups, bits=(2, 4), rows=ROWS, symmetric=False, seed=0):
    """A block with feedback of a factor's size."""
    generator = torch.Generator().manual_seed(seed)
    n = len(bits)
    original = torch.randn(columns, rows, generator=generator)
    state = original + 0.1 * torch.randn(n, columns, rows, generator=generator)
    inverse = torch.eye(columns) + 0.2 * torch.randn(columns, columns, generator=generator).triu(1)
    group_of = torch.randint(groups, (columns,), generator=generator)
    scale = 0.3 + torch.rand(n, groups, rows, generator=generator)
    tops = (2 ** torch.tensor(bits))[:, None, None]
    zero = (
        (tops / 2).expand_as(scale).float()
        if symmetric
        else (torch.rand(scale.shape, generator=generator) * tops).floor()
    )
    codes = torch.full((n, columns, rows), 255, dtype=torch.uint8)
    delta = torch.full((n, columns, rows), torch.nan)
    return Block(state, original, inverse, scale, zero.contiguous(), group_of, torch.tensor(bits), codes, delta)


def by_hand(state, original, feedback, scale, zero, group_of, bits, codes, delta):
    """The definition, in float64, one weight at a time."""
    state = state.double()
    for lane, top in enumerate((2**bits - 1).tolist()):
        for row in range(state.shape[2]):
            for i, group in enumerate(group_of.tolist()):
                step, z = scale[lane, group, row].double(), zero[lane, group, row].double()
                level = (state[lane, i, row] / step).round().clamp(-z, top - z)
                error = state[lane, i, row] - level * step
                state[lane, i + 1 :, row] -= feedback[i, i + 1 :].double() * error
                codes[lane, i, row], delta[lane, i, row] = level + z, original[i, row].double() - level * step


@pytest.mark.parametrize("backend", ["plain", "cpu"])
@pytest.mark.parametrize(("columns", "groups"), [(1, 1), (7, 2), (33, 3)])
def test_a_block_by_hand(backend, columns, groups):
    module = __import__(f"quantizers.kernels.{backend}", fromlist=["solve_block"])
    arguments = block(columns, groups, rows=9)
    by_hand(*arguments)
    expected = [t.clone() for t in arguments[-2:]]
    arguments[-2].fill_(255)
    arguments[-1].fill_(torch.nan)
    module.solve_block(arguments)
    assert torch.equal(arguments[-2], expected[0])
    torch.testing.assert_close(arguments[-1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [5, 64, 128])
def test_numba_gives_the_codes_of_torch(columns, symmetric):
    ours = block(columns, 4, (2, 3, 8), symmetric=symmetric)
    theirs = Block(*(t.clone() for t in ours))
    cpu.solve_block(ours)
    plain.solve_block(theirs)
    assert (ours[-2] == theirs[-2]).float().mean() >= 0.999
    same = ours[-2] == theirs[-2]
    torch.testing.assert_close(ours[-1][same], theirs[-1][same])


def test_infinite_weights_stay_visible():
    arguments = block(4, 1)
    arguments[0][0, 0, 0] = torch.nan
    cpu.solve_block(arguments)
    assert not arguments[-1].isfinite().all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1, 16, 24, 40])
@pytest.mark.parametrize("bits", [2, 8])
def test_rounding_errors_are_those_of_torch(bits, size, symmetric):
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(40, ROWS, generator=generator)
    weight[:, 3] = 0  # a row of zeros, which gets the range [-1, 1]
    weight[:, 4] = weight[:, 4].abs()
    scales = torch.rand(3, 40, generator=generator) + 0.5
    ours = cpu.rounding_errors(weight, scales, bits, size, symmetric)
    assert torch.equal(ours, plain.rounding_errors(weight, scales, bits, size, symmetric))


def test_threads_do_not_matter():
    weight, scales = torch.randn(256, 400), torch.rand(20, 256) + 0.5
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arguments = block(128, 2, rows=400)
        cpu.solve_block(arguments)
        results.append((arguments[-2], cpu.rounding_errors(weight, scales, 4, 64, False)))
    torch.set_num_threads(before)
    for levels, errors in results[1:]:
        assert torch.equal(levels, results[0][0])
        assert torch.equal(errors, results[0][1])


@pytest.fixture
def without_numba(monkeypatch):
    """Within the test numba cannot be imported, and nothing knows yet."""
    kernels._usable.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    yield
    kernels._usable.cache_clear()


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_without_numba_the_methods_are_the_same_and_one_warning_says_that_they_are_slow(name, request):
    weight, inputs = sample_layer(48, 80)
    stats, quantizer = LayerStats.from_inputs(inputs), get_quantizer(name)
    assert kernels.backend(torch.device("cpu")) == "numba"
    ours = quantizer.quantize(weight, Scheme(3, 16), stats)
    request.getfixturevalue("without_numba")
    with pytest.warns(SlowKernelWarning, match="numba cannot be imported .* remedy: pip install numba") as caught:
        theirs = quantizer.quantize(weight, Scheme(3, 16), stats)
    quantizer.quantize(weight, Scheme(3, 16), stats)
    assert len(caught) == 1
    assert kernels.backend(torch.device("cpu")) == "torch"
    assert (ours.codes == theirs.codes).float().mean() >= 0.999
    assert torch.equal(ours.scale, theirs.scale) or name == "gptq"


def test_loops_are_compiled_even_if_no_folder_can_keep_them(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert cpu.compiled(lambda x: x + 1)(1) == 2


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_triton_gives_the_codes_of_torch():
    """On a GPU where there is one, else by Triton's interpreter, which has to be chosen before it is imported."""
    code = (
        "import torch\n"
        "from tests.quantizers.test_kernels import Block, block\n"
        "from quantizers.kernels import cuda, plain\n"
        "device = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
        "for columns in (5, 32, 128):\n"
        "    ours = Block(*(t.to(device) for t in block(columns, 4, (2, 3, 8))))\n"
        "    theirs = Block(*(t.clone() for t in ours))\n"
        "    cuda.solve_block(ours), plain.solve_block(theirs)\n"
        "    assert (ours[-2] == theirs[-2]).float().mean() >= 0.999, columns\n"
        "    same = ours[-2] == theirs[-2]\n"
        "    torch.testing.assert_close(ours[-1][same], theirs[-1][same])\n"
    )
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = {**os.environ, **interpreted, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
