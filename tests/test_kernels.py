"""Every way of computing a nested loss against the dense levels: forced, at sizes where it would not be chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import dense_reference
import numpy as np
import pytest
import torch
from test_nested import CASES, problem
from torch.nn import functional as F

from nb_sae.sae.kernels import cpu as cpu_way
from nb_sae.sae.kernels.cpu import cpu
from nb_sae.sae.kernels.dense import dense
from nb_sae.sae.kernels.encoder import affine
from nb_sae.sae.kernels.plan import Plan
from nb_sae.sae.kernels.select import by_rows, float_bits, select
from nb_sae.sae.nested import nested_loss


def computed(way, tensors, options, gradients=True):
    options = dict(options)
    rows = options.pop("row_weights", None)
    settings = {"widths": None, "selection": "row", "row_weights": rows, **options}
    return way(*tensors, rows, Plan.make(*tensors, **settings), gradients)


def check(result, tensors, options, rtol):
    target, *leaves = tensors
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    loss, errors, residual = dense_reference.dense_loss(target, *leaves, **options)
    torch.testing.assert_close(result.loss, loss, rtol=rtol, atol=0)
    torch.testing.assert_close(result.errors, errors, rtol=rtol, atol=0)
    torch.testing.assert_close(result.residual, residual, rtol=rtol, atol=rtol)
    wanted = torch.autograd.grad(loss, leaves)
    for got, grad in zip((result.grad_pre, result.grad_decoder, result.grad_bias), wanted, strict=True):
        torch.testing.assert_close(got, grad, rtol=rtol, atol=rtol * float(grad.abs().max()) * 1e-2)


def fake_costs(monkeypatch, sums, dots):
    for dtype in cpu_way.SUM_COST:
        monkeypatch.setitem(cpu_way.SUM_COST, dtype, sums)
        monkeypatch.setitem(cpu_way.DOT_COST, dtype, dots)


@pytest.mark.parametrize(("sums", "dots"), [(0, 0), (0, 1000), (1000, 1000), (8, 8)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_processor_gathers_and_multiplies_to_the_same(case, sums, dots, monkeypatch):
    """Costs of 0 gather everything, large ones nothing, those between mix the two."""
    fake_costs(monkeypatch, sums, dots)
    tensors, options = problem(case, torch.float32)
    check(computed(cpu, tensors, options), tensors, options, 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_dense_way_is_the_reference(case):
    tensors, options = problem(case, torch.float64)
    check(computed(dense, tensors, options), tensors, options, 1e-10)


@pytest.mark.parametrize("sums", [0, 8, 1000])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_selects_exactly_and_stays_near(case, sums, monkeypatch):
    fake_costs(monkeypatch, sums, 1000)
    (target, pre, W_dec, b_dec), options = problem(case, torch.float32)
    half = pre.bfloat16().requires_grad_()
    result = nested_loss(target, half, W_dec, b_dec, **options)
    (grad,) = torch.autograd.grad(result.loss, half)
    assert grad.dtype is torch.bfloat16
    k = options["budgets"][-1]
    positive = int((half > 0).sum()) if options.get("selection") == "batch" else (half > 0).sum(1).clamp_max(k)
    used = (grad != 0).sum(1)
    if options.get("selection") == "batch":
        assert int(used.sum()) == min(k * len(pre), positive)
    else:
        assert torch.equal(used, positive)
    loss, _, _ = dense_reference.dense_loss(target, half.detach().float(), W_dec, b_dec, **options)
    torch.testing.assert_close(result.loss.detach(), loss, rtol=2e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("listed", [(), (0, 2), (0, 1, 2)])
def test_selection_is_exact_with_ties_everywhere(dtype, batch, listed):
    """Values from a handful of numbers: the threshold of every row is shared by many latents."""
    generator = torch.Generator().manual_seed(3)
    pre = torch.randint(-3, 4, (70, 50), generator=generator).to(dtype)
    budgets = (3, 11, 19)
    found = select(float_bits(pre), budgets, listed=listed, everything=False, batch=batch, ascending=True)
    chosen = torch.zeros(pre.shape, dtype=torch.bool)
    for bucket, k in enumerate(budgets):
        if bucket in listed:
            hits = found.hits[bucket]
            rows = np.repeat(np.arange(len(pre)), np.diff(hits.edges))
            chosen[rows[hits.values > 0], hits.latents[hits.values > 0]] = True
        else:
            chosen |= torch.from_numpy(found.first == bucket)
        chosen &= pre > 0
        flat, kept = (pre.reshape(1, -1), chosen.reshape(1, -1)) if batch else (pre, chosen)
        many = k * len(pre) if batch else k
        values, _ = flat.topk(many, dim=1)
        assert torch.equal(kept.sum(1), (values > 0).sum(1))
        assert torch.equal((flat * kept).sum(1).float(), values.relu().sum(1).float())
        for row in range(len(flat)):  # of equal values the earlier are taken
            limit = values[row].min()
            if limit > 0:
                ties = (flat[row] == limit).nonzero().flatten()
                inside = kept[row, ties]
                assert not bool(inside[1:].gt(inside[:-1]).any())


def test_wide_dictionaries_need_longer_keys():
    """Above 65,536 latents a latent's number does not fit beside a bfloat16 in 32 bits."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(3, 70_000, generator=generator).bfloat16()
    found = select(float_bits(pre), (5,), listed=(0,), everything=False, batch=False, ascending=False)
    values = torch.from_numpy(found.hits[0].values).view(torch.bfloat16).view(3, 5)
    assert torch.equal(values.sort(1).values, pre.topk(5).values.sort(1).values)
    latents = torch.from_numpy(found.hits[0].latents).long().view(3, 5)
    assert torch.equal(pre.gather(1, latents), values)


def test_more_latents_and_rows_than_fit_beside_a_value(monkeypatch):
    """In float32 latent, row and value share 64 bits only up to a size; beyond it they are sorted another way."""
    monkeypatch.setattr(cpu_way, "KEY_BITS", 40)
    for case in CASES:
        fake_costs(monkeypatch, 0, 0)
        tensors, options = problem(case, torch.float32)
        check(computed(cpu, tensors, options), tensors, options, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_reaches_the_loss(dtype, sign):
    (target, pre, W_dec, b_dec), options = problem("budgets", torch.float32)
    pre[3, 7] = torch.nan if sign > 0 else -torch.tensor(torch.nan)
    assert not nested_loss(target, pre.to(dtype), W_dec, b_dec, **options).loss.isfinite()


def test_rows_are_split_over_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert by_rows(lambda rows: (rows.start, rows.stop), 10) == [(0, 3), (3, 6), (6, 10)]
    tensors, options = problem("budgets", torch.float32)
    check(computed(cpu, tensors, options), tensors, options, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kept", [0.02, 1.0])
def test_encoder_gradients(dtype, kept):
    """A gradient that is mostly 0 is summed sparsely, a full one multiplied; both are autograd's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 20, generator=generator)
    W, bias = torch.randn(20, 90, generator=generator), torch.randn(90, generator=generator)
    above = torch.randn(40, 90, generator=generator) * (torch.rand(40, 90, generator=generator) < kept)
    if dtype is torch.float64:
        x, W, bias, above = (tensor.double() for tensor in (x, W, bias, above))
    leaves = [x.requires_grad_(), W.requires_grad_(), bias.requires_grad_()]
    got = torch.autograd.grad(affine(*leaves, dtype), leaves, above.to(dtype))
    wanted = torch.autograd.grad(torch.addmm(bias, x, W), leaves, above)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype is other.dtype
        tolerance = 3e-2 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_triton_in_its_interpreter():
    """The tests below in a process of their own: the interpreter must be asked for before Triton is imported."""
    pytest.importorskip("triton")
    if torch.cuda.is_available() or INTERPRETED:
        pytest.skip("they run right here")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "triton_gives_the_same"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout


@pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("d_out", [12, 40, 300])
@pytest.mark.parametrize("case", CASES)
def test_triton_gives_the_same(case, d_out):
    """No width is a power of two; 300 takes two blocks of columns."""
    if d_out == 300 and case not in ("budgets", "batch, budgets and widths"):
        pytest.skip("slow in the interpreter; two cases are enough")
    from nb_sae.sae.kernels.gpu import gpu

    tensors, options = problem(case, torch.float32, batch=9, d_out=d_out)
    device = "cpu" if INTERPRETED else "cuda"
    tensors = tuple(tensor.to(device) for tensor in tensors)
    if "row_weights" in options:
        options["row_weights"] = options["row_weights"].to(device)
    result = computed(gpu, tensors, options)
    check(result, tensors, options, 1e-4)
    wanted = computed(dense, tensors, options)
    assert torch.equal(result.fired, wanted.fired)
    assert torch.equal(result.thresholds, wanted.thresholds)


@pytest.mark.parametrize("case", CASES)
def test_what_runs_on_a_gpu_never_asks_for_a_value(case):
    """Tensors without data: whatever would wait for the device (item, nonzero, a mask as index) raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors, options = problem(case, torch.float32)
    with FakeTensorMode() as mode:
        fakes = tuple(mode.from_tensor(tensor) for tensor in tensors)
        if "row_weights" in options:
            options["row_weights"] = mode.from_tensor(options["row_weights"])
        result = computed(dense, fakes, options)
        assert result.grad_pre.shape == tensors[1].shape


def test_around_the_triton_kernels_nothing_asks_for_a_value(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nb_sae.sae.kernels import gpu as gpu_way

    def bag_sum(indices, edges, values, table):
        return table.new_empty(len(edges) - 1, table.shape[1])

    monkeypatch.setattr(gpu_way, "bag_sum", bag_sum)
    monkeypatch.setattr(gpu_way, "bag_dot", lambda left, right, a, b: a.new_empty(len(left)))
    for case in CASES:
        tensors, options = problem(case, torch.float32)
        with FakeTensorMode() as mode:
            fakes = tuple(mode.from_tensor(tensor) for tensor in tensors)
            if "row_weights" in options:
                options["row_weights"] = mode.from_tensor(options["row_weights"])
            assert computed(gpu_way.gpu, fakes, options).grad_decoder.shape == tensors[2].shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("d_sae", [48, 4096])
def test_a_step_on_a_gpu_does_not_wait_for_it(d_sae):
    generator = torch.Generator(device="cuda").manual_seed(0)
    target = torch.randn(64, 24, device="cuda", generator=generator)
    pre = torch.randn(64, d_sae, device="cuda", generator=generator, requires_grad=True)
    W_dec = F.normalize(torch.randn(d_sae, 24, device="cuda", generator=generator), dim=1).requires_grad_()
    bias = torch.zeros(24, device="cuda", requires_grad=True)
    options = {"budgets": (4, 16), "level_weights": (0.5, 0.5)}
    nested_loss(target, pre, W_dec, bias, **options).loss.backward()  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        nested_loss(target, pre, W_dec, bias, **options).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
