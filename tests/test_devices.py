"""Steps that wait for no device, and devices that lack something: bfloat16, float64, a fused optimiser."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from sessions import CONFIGS, WIDTH, rows, start

import nb_sae as ns
from nb_sae import machine
from nb_sae.errors import ConfigError
from nb_sae.sae import optim
from nb_sae.sae.step import TrainingState


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


# --- nothing waits for the device ---


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_on_a_gpu_never_waits_for_it(name, monkeypatch):
    """Tensors of the device "meta" have no values, so whatever would wait for one raises; it takes the GPU's path."""
    monkeypatch.setattr(optim, "has_fused_adam", lambda device: True)
    monkeypatch.setattr(optim, "compute_dtype", lambda *args: torch.bfloat16)
    device = torch.device("meta")
    plan = ns.TrainConfig(rows=640, batch_rows=32, grad_clip=1.0, ema_decay=0.9, project_gradient=True)
    state = TrainingState(CONFIGS[name], plan, WIDTH, device=device)
    assert state.optimizer.defaults["fused"]
    # No kernel of these two is made for "meta"; Adam's reads the mark of a failed step on the device.
    monkeypatch.setattr(state.optimizer, "step", lambda: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **others: nullcontext())
    x = torch.empty(32, WIDTH, device=device)
    for step in range(2):
        result = state.backward(x, x, step)
        state.apply(step)
    numbers = torch.cat([torch.stack([result.loss, result.variance]), result.errors, state.dead.float()])
    assert numbers.device == device
    with pytest.raises(RuntimeError, match="meta"):
        bool(state.failed_step >= 0)  # what the test forbids does raise


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


def test_a_gpu_without_bfloat16_computes_in_float32_and_says_so_if_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    t4 = torch.device("cuda")
    assert optim.compute_dtype(ns.TrainConfig(), t4, 2**24) is torch.float32
    with pytest.raises(ConfigError, match="does not compute in bfloat16"):
        optim.compute_dtype(ns.TrainConfig(autocast="bfloat16"), t4, 2**24)


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
