"""Contract and oracle: a model that is shared out over several devices gives the records of one on a single device.

The devices do not exist (`tests.support.devices`): their tensors compute on the CPU, and an operation on tensors of two
of them fails.  torch's passes back know no such devices, so the noise floor, which needs gradients, is not tested.
"""

import json
import sys
from unittest.mock import patch

import pytest
import torch

from ptq_eval.measure import paused_forward
from ptq_eval.measure import session as sessions
from ptq_eval.measure.memory import Budget
from ptq_eval.measure.sweep import sweep
from ptq_eval.models.blueprint import blueprint
from ptq_eval.models.sharded import shares
from quantizers import kernels
from tests.support import devices
from tests.support.steps import planned

NAMES = [f"{devices.KIND}:{index}" for index in range(3)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mixtral"])
@pytest.mark.parametrize("count", [2, 3])
def test_blocks_are_shared_out_in_their_order(architecture, count, saved):
    module = blueprint(saved(architecture), False).module
    where = shares(module, NAMES[:count])
    names = [name for name, _ in module.named_parameters()]
    homes = [next(where[own] for own in where if f"{name}.".startswith(f"{own}.")) for name in names]
    blocks = [home for name, home in zip(names, homes) if any(map(str.isdigit, name.split(".")))]
    assert blocks == sorted(blocks)
    assert len({*homes}) == count
    others = {home for name, home in zip(names, homes) if not any(map(str.isdigit, name.split(".")))}
    assert others == {NAMES[0]}


def test_a_model_is_shared_out_where_one_device_does_not_hold_it_and_several_do(saved, small, monkeypatch):
    work, asked = planned(saved("llama").parent, **small).workloads[0], []

    def opened(free, memory=None):
        asked.clear()
        load = lambda folder, several, **_: asked.extend(several)
        monkeypatch.setattr(sessions, "gpus", lambda device: NAMES)
        monkeypatch.setattr(Budget, "of", classmethod(lambda cls, *_: cls(1.0)))
        monkeypatch.setattr("ptq_eval.measure.memory.free_memory", lambda device: free)
        monkeypatch.setattr(sessions.ShardedModel, "load_on", staticmethod(load))
        monkeypatch.setattr(sessions.OffloadedModel, "load_from_disk", staticmethod(lambda *_, **__: None))
        with sessions.Session.opened(work, memory=memory) as session:
            return asked, session

    size = 4.0 * work.checkpoint.params_total
    there, session = opened(size)
    assert (there, session.offloaded, session.budget.devices) == (NAMES, False, 3)
    assert session.budget.each * 3 == session.budget.total == pytest.approx(3 * 0.8 * size)
    for free, memory in ((0.5 * size, None), (size, 1)):  # too small together; a limit is kept on one device
        there, session = opened(free, memory)
        assert there == []
        assert session.offloaded


@pytest.mark.parametrize(
    ("architecture", "include_head"), [("llama", True), pytest.param("gpt2", False, marks=pytest.mark.slow)]
)
def test_records_are_those_of_one_device(architecture, include_head, saved, small, python):
    folder = saved(architecture).parent
    options = {**small, "quantizers": ["rtn", "gptq", "awq", "gptaq"], "bits": [3], "include_head": include_head}
    done = python("-m", __name__, folder, json.dumps(options), HF_DEACTIVATE_ASYNC_LOAD="1")
    assert done.returncode == 0, done.stderr[-2000:]
    whole, sharded, homes = json.loads(done.stdout.splitlines()[-1])
    assert homes == NAMES
    assert len(whole) == 5
    assert all(status == "ok" for _, status, *_ in whole)
    assert sharded == whole


def _records(work):
    found = sweep(work, work.trials, tick=lambda _: None)
    return [(m.trial.key(), m.status, m.nll, m.kl, m.agree, m.bits_per_weight, m.message) for m in found]


def _main(folder, options):
    """Both sweeps in a process of their own, which knows the devices from then on."""
    kernels.COMPILERS.clear()  # the inner loops of all devices are torch's
    work = planned(folder, **options).workloads[0]
    whole, homes = _records(work), set()
    devices.add()
    load = sessions.ShardedModel.load_on

    def noted(*args, **more):
        model = load(*args, **more)
        homes.update(str(parameter.device) for parameter in model.module.parameters())
        return model

    def forward(*args, _own=paused_forward._forward):
        with devices.Devices():  # in a thread of its own, which has no modes yet
            return _own(*args)

    several = Budget(1e9, 3)
    with (
        devices.Devices(),
        patch.object(paused_forward, "_forward", forward),
        patch.object(sessions, "gpus", lambda device: NAMES),
        patch.object(Budget, "of", lambda *_: Budget(1.0)),
        patch.object(Budget, "of_several", lambda *_: several),
        patch.object(sessions.ShardedModel, "load_on", noted),
    ):
        sharded = _records(work)
    print(json.dumps([whole, sharded, sorted(homes)]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main(sys.argv[1], json.loads(sys.argv[2]))
