"""Every architecture against planted atoms, and every option against what it promises."""

from __future__ import annotations

import planted
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.errors import ConfigError
from nb_sae.sae.dead import resample
from nb_sae.sae.losses import jump_relu, l0_penalty
from nb_sae.sae.model import SAE
from nb_sae.sae.optim import MovingAverage, compute_dtype, make_optimizer, unit_decoder
from nb_sae.sae.scale import Scale, geometric_median
from nb_sae.sae.step import TrainingState

D, ATOMS, ACTIVE = 32, 96, 3
TRUTH = planted.atoms(ATOMS, D)
SETTINGS = ns.TrainConfig(rows=250_000, batch_rows=512)


@pytest.fixture(scope="module")
def store():
    rows, _ = planted.sparse_rows(TRUTH, 20_000, active=ACTIVE, seed=1)
    return ns.ActivationStore.from_tensor(rows)


@pytest.fixture(scope="module")
def unseen():
    rows, _ = planted.sparse_rows(TRUTH, 3_000, active=ACTIVE, seed=2)
    return rows


def closest(W_dec: Tensor) -> float:
    """Mean over the true atoms of the largest cosine to a latent."""
    return float((TRUTH @ F.normalize(W_dec, dim=-1).T).max(dim=1).values.mean())


def fvu(x: Tensor, x_hat: Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize(
    ("config", "l0", "tolerance"),
    [
        (ns.SAEConfig.topk(3, d_sae=ATOMS), 3, 0.01),
        (ns.SAEConfig.msae(d_sae=ATOMS, budgets=(3, 6, 12)), 12, 0.01),
        (ns.SAEConfig.msae(d_sae=ATOMS, budgets=(3, 6), widths=(48, 96)), 6, 0.01),
        (ns.SAEConfig.batch_topk(3, d_sae=ATOMS), 3, 0.2),
        (ns.SAEConfig.k_sparse(3, d_sae=ATOMS), 3, 0.01),
        (ns.SAEConfig.jump_relu(3, d_sae=ATOMS), 3, 0.5),
        (ns.SAEConfig.relu(d_sae=ATOMS, l1_weight=0.2), 11, 4),
        (ns.SAEConfig.gated(d_sae=ATOMS, l1_weight=1.0), 3.5, 1.5),
    ],
    ids=lambda value: value.sparsity + "_tied" * value.tied if isinstance(value, ns.SAEConfig) else None,
)
def test_every_architecture_finds_the_planted_atoms(store, unseen, tmp_path, config, l0, tolerance):
    dictionary = ns.train_sae(store, config, SETTINGS, progress=False)
    latents = dictionary.encode(unseen)
    chance = closest(F.normalize(torch.randn(ATOMS, D, generator=torch.Generator().manual_seed(9)), dim=-1))

    assert closest(dictionary.W_dec) > 0.9 > chance + 0.3
    assert fvu(unseen, dictionary.decode(latents)) < 0.2
    assert float((latents != 0).sum(-1).double().mean()) == pytest.approx(l0, abs=tolerance)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(ATOMS))

    again = ns.Dictionary.load(dictionary.save(tmp_path / "d"))
    assert torch.equal(again.encode(unseen), latents)
    assert (again.sparsity, again.budgets, again.widths) == (config.sparsity, config.budgets, config.widths)
    values, indices = again.encode(unseen, sparse=True)
    torch.testing.assert_close(torch.zeros_like(latents).scatter(-1, indices, values), latents)


def test_a_transcoder_maps_rows_of_one_site_to_another(unseen):
    generator = torch.Generator().manual_seed(5)
    other = F.normalize(torch.randn(ATOMS, 20, generator=generator), dim=-1)
    x, coefficients = planted.sparse_rows(TRUTH, 20_000, active=ACTIVE, seed=1)
    state = TrainingState(
        ns.SAEConfig.topk(ACTIVE, d_sae=ATOMS).resolve(D, 20),
        ns.TrainConfig(rows=400_000, batch_rows=512).resolve(len(x)),
        D,
        d_out=20,
        device=torch.device("cpu"),
    )
    y = coefficients @ other
    scale_x, scale_y = (d**0.5 / rows.std() / d**0.5 for d, rows in ((D, x), (20, y)))
    x, y = (x - x.mean(0)) * scale_x, (y - y.mean(0)) * scale_y
    for step in range(state.train.steps):
        batch = torch.randint(len(x), (512,), generator=generator)
        state.backward(x[batch], y[batch], step)
        state.apply(step)
    with torch.no_grad():
        values, indices = state.sae.encode(x[:2000], ACTIVE)
        error = fvu(y[:2000], state.sae.decode(values, indices))
    found = (other @ F.normalize(state.sae.W_dec.detach(), dim=-1).T).max(dim=1).values.mean()
    assert error < 0.3
    assert found > 0.85


def test_the_training_loss_of_every_architecture_has_the_gradient_of_finite_differences():
    """In float64; JumpReLU's thresholds and TopK's selection are held fixed by a small step."""
    x = torch.randn(12, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    train = ns.TrainConfig(dtype="float64", batch_rows=12, rows=1000, sparsity_warmup=0, aux_weight=0).resolve(12)
    for config in (
        ns.SAEConfig.relu(d_sae=9, encoder_scale=1.0, widths=(4, 9)),
        ns.SAEConfig.gated(d_sae=9, encoder_scale=1.0),
        ns.SAEConfig.k_sparse(3, d_sae=9, encoder_scale=1.0),
        ns.SAEConfig.msae(d_sae=9, budgets=(2, 4), widths=(4, 9), encoder_scale=1.0, loss="nmse"),
    ):
        state = TrainingState(config.resolve(5), train, 5, device=torch.device("cpu"))
        with torch.no_grad():
            state.sae.b_dec.normal_(generator=torch.Generator().manual_seed(1))
            state.sae.b_enc.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.1)
        state.backward(x, x, 5)
        for name, parameter in state.sae.named_parameters():
            if config.sparsity == "gated" and name in ("W_dec", "b_dec"):
                continue  # the gate's own reconstruction sees them frozen, which a difference cannot
            assert parameter.grad is not None
            grad = parameter.grad.clone()
            at = tuple(int(size) // 2 for size in parameter.shape)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[at] += sign * 1e-6
                values.append(float(state.backward(x, x, 5).loss))
                with torch.no_grad():
                    parameter[at] -= sign * 1e-6
            slope = (values[0] - values[1]) / 2e-6
            assert float(grad[at]) == pytest.approx(slope, rel=1e-4, abs=1e-8), (config.sparsity, name)


def test_jump_relu_gradients_are_those_of_the_rectangle_kernel():
    pre = torch.tensor([[0.5, 1.02, 2.0]], requires_grad=True)
    threshold = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    jump_relu(pre, threshold, 0.1).sum().backward()
    assert pre.grad is not None
    assert threshold.grad is not None
    torch.testing.assert_close(pre.grad, torch.tensor([[0.0, 1.0, 1.0]]))
    torch.testing.assert_close(threshold.grad, torch.tensor([0.0, -1 / 0.1, 0.0]))

    threshold.grad = None
    penalty, l0 = l0_penalty(pre.detach(), threshold, 0.1, target_l0=1.0)
    penalty.backward()
    assert float(l0) == 2
    torch.testing.assert_close(threshold.grad, torch.tensor([0.0, -2.0 / 0.1, 0.0]))


def test_the_threshold_of_batch_topk_does_not_depend_on_the_batch(store, unseen):
    dictionary = ns.train_sae(store, ns.SAEConfig.batch_topk(3, d_sae=ATOMS), SETTINGS, progress=False)
    one_by_one = torch.cat([dictionary.encode(row[None]) for row in unseen[:50]])
    torch.testing.assert_close(dictionary.encode(unseen[:50]), one_by_one)
    assert (dictionary.encode(unseen, k=2) > 0).sum(-1).max() <= 2


def test_tied_weights_stay_tied(store):
    session = ns.Session(store, ns.SAEConfig.k_sparse(3, d_sae=ATOMS), SETTINGS)
    session.run(steps=20, progress=False)
    torch.testing.assert_close(session.dictionary.W_enc, session.dictionary.W_dec.T)
    assert "W_enc" not in dict(session.sae.named_parameters())


def test_the_paper_preset_is_the_paper_as_coded():
    config = ns.SAEConfig.msae_paper(768)
    assert config.budgets == (64, 128, 256, 512, 1024, 2048, 4096, 6144)
    assert config.normalised_weights == pytest.approx([w / 36 for w in (8, 7, 6, 5, 4, 3, 2, 1)])
    assert (config.loss, config.encoder_scale) == ("nmse", 0.01)
    train = ns.TrainConfig.msae_paper(epochs=30).resolve(2_905_936)
    per_epoch = 2_905_936 // 4096
    rates = [train.rate_at(epoch * per_epoch, epoch_steps=per_epoch) for epoch in range(30)]
    assert rates[:25] == [1e-4] * 25
    assert rates[29] == pytest.approx(1e-4 / 6)
    with pytest.raises(ConfigError, match="budgets start at 64"):
        ns.SAEConfig.msae_paper(4)


def test_the_paper_preset_trains(store):
    session = ns.Session(store, ns.SAEConfig.msae_paper(D), ns.TrainConfig.msae_paper(epochs=2, batch_rows=512))
    session.run(progress=False)
    assert session.log["fvu_k64"][-1] < session.log["fvu_k64"][0]


def test_nmse_weighs_each_row_by_its_own_distance():
    torch.manual_seed(0)
    x = torch.randn(64, 6) * torch.linspace(0.1, 3, 64)[:, None]
    losses = {}
    for loss in ("mse", "nmse"):
        config = ns.SAEConfig.msae(d_sae=12, budgets=(2, 4), loss=loss, residual=False).resolve(6)
        state = TrainingState(config, ns.TrainConfig(batch_rows=64).resolve(64), 6, device=torch.device("cpu"))
        result = state.backward(x, x, 0)
        losses[loss] = (float(result.loss), result.errors)
        with torch.no_grad():
            values, indices = state.sae.encode(x, 4)
            levels = [(x - state.sae.decode(values[:, :k], indices[:, :k])).square().mean(-1) for k in (2, 4)]
        weight = 1 / x.square().mean(-1) if loss == "nmse" else torch.ones(64)
        assert losses[loss][0] == pytest.approx(
            float(torch.stack([(e * weight).mean() for e in levels]).mean()), rel=1e-5
        )
    torch.testing.assert_close(losses["mse"][1], losses["nmse"][1])


def test_the_moving_average_is_the_average_of_what_was():
    sae = SAE(3, 5)
    average = MovingAverage(sae, 0.5)
    expected = sae.W_dec.detach().clone()
    for step in range(20):
        with torch.no_grad():
            sae.W_dec.add_(1.0)
        average.update(sae, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * sae.W_dec.detach()
    torch.testing.assert_close(average.tensors["W_dec"], expected)


def test_the_moving_average_is_what_the_dictionary_gives(store, unseen):
    train = ns.TrainConfig(rows=50_000, batch_rows=512, ema_decay=0.9, decay_fraction=0)
    session = ns.Session(store, ns.SAEConfig.topk(3, d_sae=ATOMS), train)
    session.run(progress=False)
    last = F.normalize(session.sae.W_dec.detach(), dim=-1)
    assert not torch.allclose(session.dictionary.W_dec, last)
    assert closest(session.dictionary.W_dec) > 0.6


def test_unit_decoder_before_the_step_changes_no_reconstruction():
    sae = SAE(4, 8, encoder_scale=1.0)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(8, 1) + 0.5)
        sae.b_enc.normal_()
        x = torch.randn(10, 4)
        before = sae.pre_activations(x).relu() @ sae.W_dec
        unit_decoder(sae, encoder_follows=True)
        torch.testing.assert_close(sae.pre_activations(x).relu() @ sae.W_dec, before)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(8))


def test_projection_leaves_no_gradient_along_a_row():
    config = ns.SAEConfig.topk(2, d_sae=12).resolve(6)
    train = ns.TrainConfig(batch_rows=32, project_gradient=True).resolve(32)
    state = TrainingState(config, train, 6, device=torch.device("cpu"))
    x = torch.randn(32, 6)
    state.backward(x, x, 0)
    rows = state.sae.W_dec.detach().clone()
    state.apply(0)
    assert state.sae.W_dec.grad is not None
    assert float((state.sae.W_dec.grad * rows).sum(-1).abs().max()) < 1e-6


def test_resampling_brings_dead_latents_back_and_touches_no_other():
    torch.manual_seed(0)
    sae = SAE(6, 10)
    optimizer = make_optimizer(sae, ns.TrainConfig(), torch.device("cpu"))
    x = torch.randn(200, 6)
    (sae.pre_activations(x).relu() @ sae.W_dec).square().mean().backward()
    optimizer.step()
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[2, 7]] = True
    before = {name: value.detach().clone() for name, value in sae.named_parameters()}
    residual = torch.zeros(200, 6)
    residual[5] = torch.tensor([3.0, 0, 0, 0, 0, 0])
    assert resample(sae, optimizer, dead, x, residual, seed=0) == 2
    torch.testing.assert_close(sae.W_dec[[2, 7]].detach(), torch.eye(6)[[0, 0]])
    assert torch.equal(sae.W_dec[~dead], before["W_dec"][~dead])
    assert torch.equal(sae.W_enc[:, ~dead], before["W_enc"][:, ~dead])
    assert float(optimizer.state[sae.W_dec]["exp_avg"][dead].abs().max()) == 0
    assert float(optimizer.state[sae.W_enc]["exp_avg"][:, ~dead].abs().max()) > 0
    assert resample(sae, optimizer, torch.zeros(10, dtype=torch.bool), x, residual, seed=0) == 0
    assert resample(sae, optimizer, dead, x, torch.zeros(200, 6), seed=0) == 0


def test_resampling_lowers_the_number_of_dead_latents():
    rows, _ = planted.sparse_rows(TRUTH, 5_000, active=ACTIVE, seed=1)
    store = ns.ActivationStore.from_tensor(rows)
    dead = {}
    for every in (None, 20_000):
        train = ns.TrainConfig(
            rows=120_000, batch_rows=256, aux_weight=0, dead_after_rows=8_000, resample_every=every, seed=0
        )
        config = ns.SAEConfig.topk(3, d_sae=256, encoder_scale=1.0)
        session = ns.Session(store, config, train).run(progress=False)
        dead[every] = session.log["dead"][-1]
    assert dead[20_000] < 0.7 * dead[None]


def test_the_geometric_median_ignores_what_the_mean_follows():
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    rows[:20] += 1000
    median = geometric_median(rows)
    assert float(median.norm()) < 0.5 < float(rows.mean(0).norm())
    torch.testing.assert_close(geometric_median(torch.ones(5, 3)), torch.ones(3))


def test_bias_starts_where_it_was_asked_to(store):
    mean = torch.as_tensor(store.statistics().mean, dtype=torch.float32)
    for init, expected in (("mean", mean), ("zeros", torch.zeros(D))):
        session = ns.Session(store, ns.SAEConfig.topk(3, d_sae=ATOMS, bias_init=init), SETTINGS)
        torch.testing.assert_close(session.dictionary.b_dec, expected, atol=1e-5, rtol=1e-5)
    session = ns.Session(store, ns.SAEConfig.topk(3, d_sae=ATOMS, bias_init="geometric_median"), SETTINGS)
    sample = next(iter(store.batches(8192, seed=0)))
    torch.testing.assert_close(session.dictionary.b_dec, geometric_median(sample), atol=1e-3, rtol=1e-3)


def test_a_failed_step_keeps_the_weights_as_they_were():
    config = ns.SAEConfig.msae(d_sae=12, budgets=(2, 4)).resolve(6)
    state = TrainingState(config, ns.TrainConfig(batch_rows=32, rows=3200).resolve(32), 6, device=torch.device("cpu"))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        state.backward(x, x, step)
        state.apply(step)
    good = {name: value.detach().clone() for name, value in state.sae.named_parameters()}
    broken = x.clone()
    broken[3, 2] = torch.nan
    for step, rows in ((3, broken), (4, x)):
        state.backward(rows, rows, step)
        state.apply(step)
    assert int(state.failed_step) == 3
    for name, value in state.sae.named_parameters():
        torch.testing.assert_close(value.detach(), good[name], msg=name)


@pytest.mark.parametrize(
    ("device", "autocast", "numbers", "expected"),
    [
        ("cpu", None, 10**9, torch.float32),
        ("cpu", "bfloat16", 10, torch.bfloat16),
        ("cpu", "auto", 10, torch.float32),
        ("mps", "auto", 10**9, torch.float32),
    ],
)
def test_precision_is_chosen_from_device_and_size(device, autocast, numbers, expected):
    assert compute_dtype(ns.TrainConfig(autocast=autocast), torch.device(device), numbers) is expected


def test_a_device_without_bfloat16_says_so():
    with pytest.raises(ConfigError, match="does not compute in bfloat16"):
        compute_dtype(ns.TrainConfig(autocast="bfloat16"), torch.device("mps"), 10)


def test_bfloat16_products_find_the_same_atoms(store, unseen):
    train = ns.TrainConfig(rows=250_000, batch_rows=512, autocast="bfloat16")
    dictionary = ns.train_sae(store, ns.SAEConfig.msae(d_sae=ATOMS, budgets=(3, 6)), train, progress=False)
    assert closest(dictionary.W_dec) > 0.95
    assert fvu(unseen, dictionary.reconstruct(unseen)) < 0.15


def test_scale_refuses_rows_without_spread():
    from nb_sae.errors import StoreError
    from nb_sae.types import RowStatistics

    with pytest.raises(StoreError, match="All rows are equal"):
        Scale.of(RowStatistics(5, torch.zeros(3).numpy(), 0.0), torch.device("cpu"))
    with pytest.raises(StoreError, match="NaN or infinity"):
        Scale.of(RowStatistics(5, torch.zeros(3).numpy(), float("inf")), torch.device("cpu"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ns.SAEConfig.relu(budgets=(4,)), "has no budgets"),
        (lambda: ns.SAEConfig(sparsity="jump_relu"), "target_l0"),
        (lambda: ns.SAEConfig.msae(d_sae=64, widths=(16, 32)), "must end at d_sae=64"),
        (lambda: ns.SAEConfig.msae(expansion=2, widths=(16, 30)).resolve(16), "must end at d_sae=32"),
        (lambda: ns.SAEConfig.msae(widths=(32, 16)), "ascending"),
        (lambda: ns.SAEConfig(sparsity="topk"), "use one of top_k"),
        (lambda: ns.SAEConfig.k_sparse(4).resolve(16, 8), "one width"),
        (lambda: ns.SAEConfig.msae(budgets=(2, 4), widths=(8, 16, 32), level_weights=(1, 2, 3)), "2 or 6"),
        (lambda: ns.TrainConfig(ema_decay=1.0), "between 0 and 1"),
        (lambda: ns.TrainConfig(autocast="float16"), "use one of 'auto'"),
        (lambda: ns.TrainConfig(grad_clip=-1), "above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_weights_of_levels_are_normalised_over_budgets_and_widths():
    config = ns.SAEConfig.msae(d_sae=32, budgets=(2, 4), widths=(8, 16, 32), level_weights=(3, 1))
    assert config.normalised_weights == pytest.approx([0.25] * 3 + [0.25 / 3] * 3)
    assert sum(config.normalised_weights) == pytest.approx(1)
    assert config.levels[:2] == [(2, 8), (2, 16)]
    reverse = ns.SAEConfig.relu(d_sae=32, widths=(8, 32), level_weights="reverse")
    assert reverse.normalised_weights == pytest.approx([2 / 3, 1 / 3])
