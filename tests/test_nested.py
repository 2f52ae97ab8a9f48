from __future__ import annotations

import dense_reference
import pytest
import torch
from torch.nn import functional as F

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.nested import nested_loss

CASES = {
    "one budget": {"budgets": (4,)},
    "budgets": {"budgets": (2, 5, 9), "level_weights": (0.5, 0.3, 0.2)},
    "budgets beyond the positives": {"budgets": (1, 4, 16, 40, 48)},
    "widths": {"budgets": (6,), "widths": (8, 20, 48)},
    "budgets and widths": {"budgets": (2, 7, 40), "widths": (5, 48), "level_weights": (0.3, 0.1, 0.2, 0.1, 0.2, 0.1)},
    "row weights": {"budgets": (2, 8), "rows": True},
    "batch": {"budgets": (3,), "selection": "batch"},
    "batch, budgets and widths": {"budgets": (1, 4, 30), "widths": (16, 48), "selection": "batch", "rows": True},
}


def problem(case, dtype, *, batch=33, d_out=12, d_sae=48, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    options = dict(CASES[case])
    levels = len(options["budgets"]) * len(options.get("widths") or (0,))
    options.setdefault("level_weights", tuple([1 / levels] * levels))
    if options.pop("rows", False):
        options["row_weights"] = random(batch).exp()
    tensors = random(batch, d_out), random(batch, d_sae), F.normalize(random(d_sae, d_out), dim=1), random(d_out)
    return tensors, options


def gradients(loss, leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_dense_levels(case, dtype, rtol):
    (target, *leaves), options = problem(case, dtype)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    ours = nested_loss(target, *leaves, **options)
    loss, errors, residual = dense_reference.dense_loss(target, *leaves, **options)
    torch.testing.assert_close(ours.loss, loss, rtol=rtol, atol=0)
    torch.testing.assert_close(ours.errors, errors, rtol=rtol, atol=0)
    torch.testing.assert_close(ours.residual, residual, rtol=rtol, atol=10 * torch.finfo(dtype).eps)
    for got, wanted in zip(gradients(3 * ours.loss, leaves), gradients(3 * loss, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()) * 1e-2)


@pytest.mark.parametrize("case", CASES)
def test_fired_and_thresholds_are_those_of_the_selection(case):
    (target, pre, W_dec, b_dec), options = problem(case, torch.float64)
    result = nested_loss(target, pre, W_dec, b_dec, **options)
    flat = pre.reshape(1, -1) if options.get("selection") == "batch" else pre
    for number, k in enumerate(options["budgets"]):
        many = k * len(pre) if len(flat) == 1 else k
        values, indices = flat.topk(many, dim=-1)
        chosen = torch.zeros_like(flat).scatter(-1, indices, values.relu()).view_as(pre)
        assert torch.equal(result.fired[number], (chosen > 0).any(0))
        assert float(result.thresholds[number]) == float(chosen[chosen > 0].min())
    assert not result.loss.requires_grad


def test_ties_select_exactly_k_and_nest():
    pre = torch.ones(5, 30, requires_grad=True)
    target = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    W_dec = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    for k in (1, 7, 30):
        result = nested_loss(target, pre, W_dec, torch.zeros(4), budgets=(k,), level_weights=(1.0,))
        (grad,) = torch.autograd.grad(result.loss, pre)
        assert (grad != 0).sum(1).tolist() == [k] * 5


def test_no_positive_value_leaves_the_bias_alone():
    target = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    pre, W_dec = -torch.ones(6, 10, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    b_dec = torch.zeros(4, requires_grad=True)
    result = nested_loss(target, pre, W_dec, b_dec, budgets=(2, 10), level_weights=(0.5, 0.5))
    grad_W, grad_b = torch.autograd.grad(result.loss, (W_dec, b_dec))
    assert not grad_W.any()
    torch.testing.assert_close(grad_b, -2 * target.mean(0) / 4)
    assert not result.fired.any()
    assert result.thresholds.tolist() == [0, 0]
    assert torch.equal(result.residual, target)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"budgets": (4, 4), "level_weights": (0.5, 0.5)}, ConfigError, "rise strictly"),
        ({"budgets": (49,)}, ConfigError, "d_sae=48"),
        ({"budgets": ()}, ConfigError, "budgets"),
        ({"widths": (8, 40), "level_weights": (0.5, 0.5)}, ConfigError, "end at d_sae=48"),
        ({"level_weights": (0.5, 0.5)}, ConfigError, "level_weights has 2"),
        ({"row_weights": torch.ones(3)}, ShapeError, "row_weights"),
        ({"selection": "rows"}, ConfigError, "selection"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, says):
    tensors, options = problem("one budget", torch.float32)
    with pytest.raises(error, match=says):
        nested_loss(*tensors, **{**options, **change})
    with pytest.raises(ShapeError, match="target"):
        nested_loss(tensors[0][:, :5], *tensors[1:], **options)
