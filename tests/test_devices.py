"""Steps that wait for no device, and devices that lack something: bfloat16, float64, a fused optimiser."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import islice

import pytest
import torch
from sessions import CONFIGS, WIDTH, rows, start
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import nb_sae as ns
from nb_sae import machine
from nb_sae.errors import ConfigError
from nb_sae.sae import optim
from nb_sae.sae.step import TrainingState


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


# --- nothing waits for the device ---

STEPS = {
    **CONFIGS,
    "rounds": ns.SAEConfig.msae(d_sae=32, budgets=(2, 4, 6), residual=True),
    "scaled levels": ns.SAEConfig.msae(d_sae=32, budgets=(2, 4), residual=False, scale_levels=True, loss="nmse"),
    "budgets of a batch": ns.SAEConfig.batch_topk((2, 4), d_sae=32, widths=(8, 32)),
    "relu of widths": ns.SAEConfig.relu(d_sae=32, widths=(8, 32)),
}
PLAN = ns.TrainConfig(
    rows=6400, batch_rows=32, grad_clip=1.0, ema_decay=0.9, project_gradient=True, dead_after_rows=64, log_every=100
)
LOOKS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}
"""Operators whose result depends on values and so waits for them, where they are not in main memory."""


class NoWaitingCopies(TorchDispatchMode):
    """Refuse copies from main memory to the device "meta" that would wait for a GPU; reading from it raises anyway."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name
        if name == "aten::lift_fresh":  # a tensor made of Python's numbers, there
            assert args[0].device.type == "cpu", "numbers are copied to the device, which waits for it"
        if name in ("aten::_to_copy", "aten::copy_"):
            devices = {one.device.type for one in args if isinstance(one, torch.Tensor)}
            devices |= {torch.device(kwargs["device"]).type} if kwargs.get("device") is not None else set()
            waits = len(devices) > 1 and not kwargs.get("non_blocking") and args[-1] is not True
            assert not waits, "a copy between devices waits for them"
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_a_gpu_never_waits_for_it(name, monkeypatch):
    """Tensors of the device "meta" have no values, so whatever would wait for one raises; it takes the GPU's path."""
    monkeypatch.setattr(optim, "has_fused_adam", lambda device: True)
    monkeypatch.setattr(optim, "compute_dtype", lambda *args: torch.bfloat16)
    device = torch.device("meta")
    state = TrainingState(STEPS[name].resolve(WIDTH), PLAN.resolve(6400), WIDTH, device=device)
    assert state.optimizer.defaults["fused"]
    # No kernel of these two is made for "meta"; Adam's reads the mark of a failed step on the device.
    monkeypatch.setattr(state.optimizer, "step", lambda: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **others: nullcontext())
    x = torch.empty(32, WIDTH, device=device)
    with NoWaitingCopies():
        for step in range(2):
            result = state.backward(x, x, step)
            state.apply(step)
    numbers = torch.cat([torch.stack([result.loss, result.variance]), result.errors, state.dead.float()])
    assert numbers.device == device
    with pytest.raises(RuntimeError, match="meta"):
        bool(state.failed_step >= 0)  # what the test forbids does raise
    for copies in (lambda: x.new_tensor([1.0]), lambda: torch.ones(3).to(device)):
        with pytest.raises(AssertionError, match="waits for"), NoWaitingCopies():
            copies()


def looked(session: ns.Session, batches, monkeypatch) -> set[str]:
    """Operators of these steps that look at values; Python's own ways to look raise."""

    def refuse(*args, **others):
        raise AssertionError("a tensor is brought to Python")

    with monkeypatch.context() as patch, profile(activities=[ProfilerActivity.CPU]) as seen:
        for way in ("numpy", "cpu", "tolist", "item", "__array__", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, way, refuse)
        for place, batch in batches:
            session.take_step(batch, place, last=-1)
    events = seen.events() or []
    assert any(event.name == "aten::addmm" for event in events), "the profiler saw nothing"
    return {event.name for event in events if event.name in LOOKS and not within(event, "aten::_fused_adam_")}


def within(event, name: str) -> bool:
    """Whether an operator was called by another. Adam's kernel for CPUs reads its count of steps, CUDA's does not."""
    parent = event.cpu_parent
    return parent is not None and (parent.name == name or within(parent, name))


@pytest.mark.parametrize("name", STEPS)
def test_a_profiled_step_of_the_generic_path_looks_at_no_value(name, monkeypatch):
    """float64 takes on a CPU the path that every device has; looks that cost nothing there are switched off."""
    for module in ("nested", "step"):
        monkeypatch.setattr(f"nb_sae.sae.{module}.reading_waits", lambda device: True)
    source = ns.ActivationStore.from_tensor(rows())
    session = start(source, STEPS[name], replace(PLAN, dtype="float64")).run(steps=4, progress=False)
    session._state.silent_rows[:, ::2] = 1e9  # half of them are dead: the auxiliary loss is at work
    batches = list(islice(session.batches(), 4))
    with session.under_way():
        assert looked(session, batches, monkeypatch) == set()
    assert session.step == 8


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (torch.nonzero, "aten::nonzero"),
        (lambda batch: batch[batch > 0], "aten::nonzero"),
        (lambda batch: torch.ops.aten.item(batch.sum()), "aten::item"),
        (float, "a tensor is brought to Python"),
    ],
)
def test_the_profiled_test_sees_what_it_forbids(look, found, monkeypatch):
    for module in ("nested", "step"):
        monkeypatch.setattr(f"nb_sae.sae.{module}.reading_waits", lambda device: True)
    session = start(ns.ActivationStore.from_tensor(rows()), train=replace(PLAN, dtype="float64"))
    session.run(steps=4, progress=False)
    real = session._state.apply
    monkeypatch.setattr(session._state, "apply", lambda step: (look(session._state.silent_rows), real(step)))
    batches = list(islice(session.batches(), 1))
    with session.under_way():
        if found.startswith("aten"):
            assert found in looked(session, batches, monkeypatch)
        else:
            with pytest.raises(AssertionError, match=found):
                looked(session, batches, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("d_sae", [32, 4096])  # dense products; gathers
@pytest.mark.parametrize("name", STEPS)
def test_cuda_itself_sees_no_step_that_waits(name, d_sae):
    config = STEPS[name]
    widths = config.widths and (d_sae // 4, d_sae)
    source = ns.ActivationStore.from_tensor(rows())
    session = ns.Session(source, replace(config, d_sae=d_sae, widths=widths), PLAN, device="cuda", progress=False)
    session.run(steps=4, progress=False)
    session._state.silent_rows[:, ::2] = 1e9
    batches = list(islice(session.batches(), 4))
    with session.under_way():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for place, batch in batches:
                session.take_step(batch, place, last=-1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert session.step == 8


# --- devices ---


def test_the_device_is_chosen_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.choose_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device='cuda'.*give 'cpu'"):
        machine.choose_device("cuda")


@pytest.mark.parametrize(
    ("device", "capability", "computes"),
    [("cuda", (7, 5), torch.float32), ("cuda", (8, 0), torch.bfloat16), ("mps", None, torch.float32)],
)
def test_a_device_without_bfloat16_computes_in_float32_and_says_so(device, capability, computes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    place, slow = torch.device(device), computes is torch.float32
    assert optim.compute_dtype(ns.TrainConfig(), place, 64) is computes
    note = optim.precision_note(ns.TrainConfig(), place)
    assert note == (f"Products are made in float32: {device} does not compute in bfloat16." if slow else None)
    assert optim.compute_dtype(ns.TrainConfig(autocast=None), place, 64) is torch.float32
    assert optim.precision_note(ns.TrainConfig(autocast=None), place) is None, "it was asked for"
    if slow:
        with pytest.raises(ConfigError, match="does not compute in bfloat16"):
            optim.compute_dtype(ns.TrainConfig(autocast="bfloat16"), place, 64)
    else:
        assert optim.compute_dtype(ns.TrainConfig(autocast="bfloat16"), place, 64) is torch.bfloat16


def test_the_note_on_precision_follows_the_memory_budget(source, monkeypatch, capsys):
    ns.Session(source, CONFIGS["top_k"], PLAN, device="cpu")
    assert capsys.readouterr().out.count("\n") == 1, "a processor has no note"
    monkeypatch.setattr(optim, "precision_note", lambda train, device: f"note on {device}")
    ns.Session(source, CONFIGS["top_k"], PLAN, device="cpu")
    assert capsys.readouterr().out.splitlines()[1:] == ["note on cpu"]


def test_mps_refuses_float64_and_adam_falls_back_where_no_fused_kernel_is(monkeypatch, source):
    with pytest.raises(ConfigError, match="no float64"):
        optim.check_device(ns.TrainConfig(dtype="float64"), torch.device("mps"))
    real = torch.optim.Adam

    def refusing(params, *, fused=False, **others):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        return real(params, fused=False, **others)

    monkeypatch.setattr(torch.optim, "Adam", refusing)
    session = start(source).run(progress=False)
    assert not session._state.optimizer.defaults["fused"]
    monkeypatch.setattr(torch.optim, "Adam", real)
    torch.testing.assert_close(
        session.dictionary.W_dec, start(source).run(progress=False).dictionary.W_dec, rtol=1e-3, atol=1e-4
    )
