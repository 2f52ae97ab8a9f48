"""Budgets in rounds: values against a slow loop, gradients against autograd, and what they buy."""

from __future__ import annotations

import planted
import pytest
import torch
from torch import Tensor

import nb_sae as ns
from nb_sae.errors import ConfigError
from nb_sae.sae.kernels.gather import Named, dot_rows, sum_rows
from nb_sae.sae.kernels.select import strongest
from nb_sae.sae.residual import residual_encode, residual_loss, rounds
from nb_sae.sae.step import TrainingState


def slow_levels(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, budgets) -> list[Tensor]:
    """Round by round with dense codes, for autograd."""
    x_hat = b_dec.expand_as(x)
    taken = torch.zeros(len(x), len(b_enc), dtype=torch.bool)
    levels, before = [], 0
    for k in budgets:
        pre = (x - x_hat) @ W_enc + b_enc
        chosen = pre.masked_fill(taken, -torch.inf).topk(k - before, dim=-1).indices
        mask = torch.zeros_like(taken).scatter(1, chosen, True)
        x_hat = x_hat + (pre * mask).relu() @ W_dec
        taken, before = taken | mask, k
        levels.append(x_hat)
    return levels


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 20), (20,), (20, 7), (7,))
    made = [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]
    made[2] = torch.nn.functional.normalize(made[2], dim=-1)
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize("budgets", [(3,), (2, 5), (1, 2, 4, 8), (4, 20)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("looks", [1, 3])
def test_loss_and_gradients_equal_the_slow_rounds(weights, budgets, weighted, looks):
    W_enc, b_enc, W_dec, b_dec = weights
    x = torch.randn(15, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    row_weights = torch.linspace(0.5, 2, 15, dtype=torch.double) if weighted else None
    share = torch.linspace(1, 2, len(budgets), dtype=torch.double)
    share = share / share.sum()

    pre = (x - b_dec) @ W_enc + b_enc
    fast = residual_loss(
        x, W_enc, b_enc, W_dec, b_dec, pre=pre, budgets=budgets, level_weights=share.tolist(), row_weights=row_weights,
        looks=looks,
    )  # fmt: skip
    stops = [stop for _, stop in rounds(budgets, budgets[-1], looks)]
    levels = dict(zip(stops, slow_levels(x, *weights, stops), strict=True))
    errors = [(x - levels[k]).square().mean(-1) for k in budgets]
    slow = sum(s * (e if row_weights is None else e * row_weights).mean() for s, e in zip(share, errors, strict=True))
    assert isinstance(slow, Tensor)
    torch.testing.assert_close(fast.loss, slow)
    torch.testing.assert_close(fast.errors, torch.stack([error.mean() for error in errors]))
    codes = [(level - b_dec).detach() for level in (levels[k] for k in budgets)]
    assert fast.fired.shape == (len(budgets), 20)
    assert all(bool(fired.any()) == bool(code.abs().sum() > 0) for fired, code in zip(fast.fired, codes, strict=True))
    ours = torch.autograd.grad(fast.loss, weights, retain_graph=True)
    theirs = torch.autograd.grad(slow, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_float32_and_bfloat16_agree_with_float64(weights):
    x = torch.randn(64, 7, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    grads = {}
    for dtype in (torch.float64, torch.float32):
        own = [tensor.detach().to(dtype).requires_grad_() for tensor in weights]
        W_enc, b_enc, _, b_dec = own
        rows = x.to(dtype)
        pre = (rows - b_dec) @ W_enc + b_enc
        loss = residual_loss(rows, *own, pre=pre, budgets=(2, 4), level_weights=(0.5, 0.5)).loss
        grads[dtype] = torch.autograd.grad(loss, own)
    for exact, single in zip(grads[torch.float64], grads[torch.float32], strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


def test_encode_takes_in_the_order_of_the_rounds(weights):
    W_enc, b_enc, W_dec, b_dec = (tensor.detach() for tensor in weights)
    x = torch.randn(30, 7, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    values, indices = residual_encode(x, W_enc, b_enc, W_dec, b_dec, budgets=(2, 5, 9), k=9)
    for k, expected in zip((2, 5, 9), slow_levels(x, W_enc, b_enc, W_dec, b_dec, (2, 5, 9)), strict=True):
        codes = torch.zeros(30, 20, dtype=torch.double).scatter(1, indices[:, :k], values[:, :k])
        torch.testing.assert_close(codes @ W_dec + b_dec, expected)
    assert all(len(set(row.tolist())) == 9 for row in indices)
    for k in (1, 3, 5, 7):
        some = residual_encode(x, W_enc, b_enc, W_dec, b_dec, budgets=(2, 5, 9), k=k)
        assert torch.equal(some[1], indices[:, :k])
    more, _ = residual_encode(x, W_enc, b_enc, W_dec, b_dec, budgets=(2, 5, 9), k=12)
    torch.testing.assert_close(more[:, :9], values)


def test_looks_fill_a_budget_evenly_and_stop_at_one_latent_each():
    assert rounds((4, 8, 16), 16, 2) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 12), (12, 16)]
    assert rounds((1, 2, 4), 4, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert rounds((4, 8), 5, 2) == [(0, 2), (2, 4), (4, 5)]
    assert rounds((4, 8), 12, 2)[-1] == (8, 12)


def test_several_looks_begin_after_their_part_of_the_run(tmp_path):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))

    def gradient(looks, step):
        config = ns.SAEConfig.msae(d_sae=24, budgets=(2, 4), looks=looks, residual=True).resolve(6)
        train = ns.TrainConfig(batch_rows=32, rows=320).resolve(3200, config)
        state = TrainingState(config, train, 6, device=torch.device("cpu"))
        errors = state.backward(x, x, step).errors
        assert state.sae.W_dec.grad is not None
        return state.sae.W_dec.grad, errors

    (one, errors), (early, early_errors), (late, late_errors) = gradient(1, 0), gradient(2, 7), gradient(2, 8)
    assert torch.equal(one, early)
    assert torch.equal(errors, early_errors)
    assert not torch.equal(one, late)
    assert len(late_errors) == 2
    assert not torch.equal(late_errors, errors)


def test_default_budgets_take_four_looks_and_given_ones_a_round_each(tmp_path):
    config = ns.SAEConfig.msae().resolve(128)
    assert (config.budgets, config.looks, config.level_weights) == ((4, 8, 16, 32), 4, "first")
    assert config.resolve(128) == config
    assert ns.SAEConfig.msae(budgets=(4, 8)).resolve(128).looks == 1
    assert ns.SAEConfig.msae(residual=False).resolve(128).looks == 1
    assert ns.SAEConfig.msae().resolve(128, rows=1000).looks == 1  # too few rows for rounds
    with pytest.raises(ConfigError, match="looks=0"):
        ns.SAEConfig.msae(looks=0)
    rows, _ = planted.sparse_rows(planted.atoms(96, 32), 4_000, active=6, seed=1)
    store = ns.ActivationStore.from_tensor(rows)
    dictionary = ns.train_sae(store, ns.SAEConfig.msae(d_sae=96), ns.TrainConfig(rows=20_000), progress=False)
    assert dictionary.looks == 4
    again = ns.Dictionary.load(dictionary.save(tmp_path / "d"))
    assert torch.equal(again.encode(rows[:50]), dictionary.encode(rows[:50]))
    once = ns.Dictionary(dictionary._tensors(), **{**dictionary._about(), "looks": 1})
    assert not torch.equal(once.encode(rows[:50]), dictionary.encode(rows[:50]))
    with pytest.raises(ConfigError, match="k=1"):  # the first of four looks at a budget of 1 or 2
        dictionary.export(tmp_path / "out", format="saelens", k=2)


def test_rounds_explain_more_than_one_look_and_survive_files(tmp_path):
    truth = planted.atoms(96, 32)
    rows, _ = planted.sparse_rows(truth, 20_000, active=6, seed=1)
    unseen, _ = planted.sparse_rows(truth, 2_000, active=6, seed=2)
    store = ns.ActivationStore.from_tensor(rows)
    train = ns.TrainConfig(rows=200_000, batch_rows=512)
    fvu = {}
    for residual in (False, True):
        config = ns.SAEConfig.msae(d_sae=96, budgets=(3, 6, 12), residual=residual)
        dictionary = ns.train_sae(store, config, train, progress=False)
        x_hat = dictionary.reconstruct(unseen, 12)
        fvu[residual] = float((unseen - x_hat).square().sum() / (unseen - unseen.mean(0)).square().sum())
    assert fvu[True] < 0.8 * fvu[False]
    again = ns.Dictionary.load(dictionary.save(tmp_path / "d"))
    assert again.residual
    assert torch.equal(again.encode(unseen), dictionary.encode(unseen))
    values, indices = again.encode(unseen, sparse=True)
    levels = again.decode_levels(values, indices)
    torch.testing.assert_close(levels[0], again.decode(again.encode(unseen, 3)))
    torch.testing.assert_close(levels[-1], again.decode(again.encode(unseen)))
    assert again.to("cpu").residual


def test_what_rounds_cannot_do_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="residual"):
        ns.SAEConfig.msae(d_sae=32, widths=(16, 32), residual=True)
    with pytest.raises(ConfigError, match="residual"):
        ns.SAEConfig.batch_topk((2, 4), d_sae=32, residual=True)
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    config = ns.SAEConfig.msae(d_sae=32, budgets=(2, 4), residual=True)
    train = ns.TrainConfig(rows=2_000, batch_rows=100)
    dictionary = ns.train_sae(ns.ActivationStore.from_tensor(rows), config, train, progress=False)
    with pytest.raises(ConfigError, match="residual=False"):
        ns.export_dictionary(dictionary, tmp_path / "all", format="saelens")
    ns.export_dictionary(dictionary, tmp_path / "first", format="saelens", k=2)
    there = ns.load_dictionary(tmp_path / "first")
    torch.testing.assert_close(there.encode(rows), dictionary.encode(rows, 2), atol=1e-5, rtol=1e-5)


def test_few_rows_are_looked_at_once(tmp_path):
    """With few rows per latent the rounds learn them by heart and make unseen ones worse."""
    truth = planted.atoms(96, 32)
    for rows, in_rounds in ((96 * 16, True), (96 * 16 - 1, False)):
        store = ns.ActivationStore.from_tensor(planted.sparse_rows(truth, rows)[0])
        session = ns.Session(store, ns.SAEConfig.msae(d_sae=96, budgets=(2, 4)), ns.TrainConfig(rows=5_000))
        assert session.config.residual is in_rounds
        assert session.config.level_weights == ("first" if in_rounds else "uniform")
        assert session.train.grad_clip == (0.05 if in_rounds else None)
        session.run(steps=3, progress=False)
        assert session.dictionary.residual is in_rounds
        loaded = ns.Session.load(session.save(tmp_path / str(rows)), store)
        assert loaded.config == session.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("many", [2, 40])  # gathered, and dense
def test_sums_and_dots_over_named_rows(dtype, many):
    generator = torch.Generator().manual_seed(0)
    table, vectors = (torch.randn(rows, 24, generator=generator).to(dtype) for rows in (60, 9))
    indices = torch.rand(9, 60, generator=generator).topk(many).indices
    values = torch.rand(9, many, generator=generator).to(dtype)
    codes = torch.zeros(9, 60, dtype=torch.double).scatter_(1, indices, values.double())
    rtol, atol = (2e-2, 5e-2) if dtype is torch.bfloat16 else (1e-5, 1e-5)
    torch.testing.assert_close(sum_rows(indices, values, table).double(), codes @ table.double(), rtol=rtol, atol=atol)
    dots = (vectors.double() @ table.double().T).gather(1, indices)
    torch.testing.assert_close(dot_rows(indices, vectors, table).double(), dots, rtol=rtol, atol=atol)
    one = indices[:, :1]
    named = Named.of([indices, one], 60, dtype)
    expected = codes.T @ vectors.double()
    expected.index_add_(0, one.flatten(), 3 * vectors.double())
    for turned in (False, True):
        summed = named.sum([values, torch.full((9, 1), 3.0)], [vectors, vectors], turned=turned)
        assert summed.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        torch.testing.assert_close(summed.double(), expected.T if turned else expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_strongest_are_those_of_topk_and_none_twice(dtype):
    seen = torch.randn(130, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    taken = seen.topk(30, dim=-1).indices
    rest = seen.clone().scatter_(1, taken, -torch.inf)
    values, indices = strongest(seen.clone(), 20, without=[taken[:, :10], taken[:, 10:]], ordered=True)
    torch.testing.assert_close(values, rest.topk(20, dim=-1).values.relu(), rtol=0, atol=0)
    both = torch.cat([taken, indices], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(50).expand(130, -1))  # also where nothing positive is left
    some, places = strongest(seen.clone(), 7)
    torch.testing.assert_close(some.sort(dim=1).values, seen.topk(7, dim=-1, sorted=True).values.flip(1))
    torch.testing.assert_close(seen.gather(1, places), some)


def test_a_nan_in_the_first_look_shows_in_the_loss(weights):
    W_enc, b_enc, W_dec, b_dec = (tensor.detach().float() for tensor in weights)
    x = torch.randn(15, 7, generator=torch.Generator().manual_seed(1))
    pre = (x - b_dec) @ W_enc + b_enc
    pre[3, 2] = -torch.tensor(float("nan"))
    done = residual_loss(x, W_enc, b_enc, W_dec, b_dec, pre=pre, budgets=(2, 4), level_weights=(0.5, 0.5))
    assert not done.loss.isfinite()
