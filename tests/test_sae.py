from __future__ import annotations

import json

import planted
import pytest
import torch

import nb_sae as ns
from nb_sae.errors import (
    ConfigError,
    FormatError,
    InputNotFoundError,
    PathExistsError,
    ShapeError,
    StoreError,
)
from nb_sae.sae import metrics
from nb_sae.sae.config import default_budgets
from nb_sae.sae.dead import dead_latent_loss
from nb_sae.sae.model import SAE
from nb_sae.sae.nested import nested_loss
from nb_sae.sae.sparsity import to_dense, top_k


@pytest.fixture(scope="module")
def trained() -> tuple[ns.Dictionary, torch.Tensor]:
    directions = planted.atoms()
    rows, _ = planted.sparse_rows(directions, 20_000)
    source = ns.ActivationStore.from_tensor(rows)
    config = ns.SAEConfig.msae(d_sae=512, budgets=(4, 8, 16))
    train = ns.TrainConfig(rows=300_000, batch_rows=512)
    return ns.train_sae(source, config, train, device="cpu", progress=False), directions


def naive_levels(x, W_enc, b_enc, W_dec, b_dec, budgets):
    """The method as the paper writes it: one dense top-k and one dense decode per budget."""
    pre = (x - b_dec) @ W_enc + b_enc
    losses = []
    for k in budgets:
        kept = torch.zeros_like(pre).scatter(-1, pre.topk(k, dim=-1).indices, 1.0)
        losses.append((x - ((pre * kept).relu() @ W_dec + b_dec)).square().mean())
    return torch.stack(losses)


@pytest.mark.parametrize("budgets", [(4,), (2, 5, 9), (1, 2, 4, 8, 16)])
def test_nested_loss_and_gradients_equal_the_dense_levels(budgets):
    torch.manual_seed(0)
    sae = SAE(8, 24, encoder_scale=1.0, seed=3).double()
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.b_enc.normal_()
    x = torch.randn(40, 8, dtype=torch.double)
    weights = torch.linspace(1, 2, len(budgets), dtype=torch.double)

    level_weights = (weights / weights.sum()).tolist()
    nested = nested_loss(x, sae.pre_activations(x), sae.W_dec, sae.b_dec, budgets=budgets, level_weights=level_weights)
    fast = torch.autograd.grad(nested.loss, list(sae.parameters()))
    naive = naive_levels(x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, budgets)
    slow = torch.autograd.grad((naive * weights / weights.sum()).sum(), list(sae.parameters()))

    torch.testing.assert_close(nested.errors, naive)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)


def test_budgets_above_the_number_of_positives_are_plain_relu():
    sae = SAE(6, 20, encoder_scale=1.0)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values, indices = sae.encode(x, 20)
        relu = sae.pre_activations(x).relu()
    torch.testing.assert_close(to_dense(values, indices, 20), relu)


def test_dead_latent_loss_pulls_only_dead_latents_towards_the_residual():
    sae = SAE(6, 10, encoder_scale=0.3, seed=1)
    residual = sae.W_dec[7].detach().expand(32, -1) * 2.0
    dead = torch.zeros(10, dtype=torch.bool)
    dead[7] = True
    pre = sae.pre_activations(residual)
    loss = dead_latent_loss(residual, pre, sae.W_dec, dead, k_aux=3)
    W_enc, W_dec = torch.autograd.grad(loss, [sae.W_enc, sae.W_dec])
    others = torch.arange(10) != 7
    assert W_enc[:, others].abs().max() == 0
    assert W_dec[others].abs().max() == 0
    after = (residual @ (sae.W_enc - 0.1 * W_enc))[:, 7]
    assert (after > (residual @ sae.W_enc)[:, 7]).all(), "the encoder of the dead latent must learn to fire here"
    assert dead_latent_loss(residual, pre, sae.W_dec, torch.zeros(10, dtype=torch.bool), 3) == 0


def test_training_recovers_planted_atoms(trained):
    dictionary, directions = trained
    similarity = (directions @ dictionary.W_dec.T).max(-1).values
    assert similarity.mean() >= 0.95
    null = (directions @ planted.atoms(512, seed=9).T).max(-1).values.mean()
    assert null < 0.5, "random dictionaries must not pass"


def test_fvu_falls_with_the_budget_up_to_the_true_number(trained):
    dictionary, directions = trained
    rows, _ = planted.sparse_rows(directions, 2_000, seed=7)
    errors = [metrics.fvu(rows, dictionary.decode(dictionary.encode(rows, k=k))) for k in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.25


def test_topk_is_the_one_budget_case_bit_for_bit():
    rows, _ = planted.sparse_rows(planted.atoms(64, 16), 2_000)
    source = ns.ActivationStore.from_tensor(rows)
    train = ns.TrainConfig(rows=20_000)
    one = ns.train_sae(source, ns.SAEConfig.topk(4, d_sae=96), train, device="cpu", progress=False)
    other = ns.train_sae(
        source, ns.SAEConfig.msae(d_sae=96, budgets=(4,), level_weights="reverse"), train, device="cpu", progress=False
    )
    assert torch.equal(one.W_dec, other.W_dec)


def test_decoder_rows_have_unit_norm_and_latents_are_in_model_units(trained):
    dictionary, directions = trained
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(512), atol=1e-6, rtol=0)
    rows, _ = planted.sparse_rows(directions, 50, seed=3)
    latents = dictionary.encode(rows)
    torch.testing.assert_close(dictionary.decode(latents), dictionary.b_dec + latents @ dictionary.W_dec)
    assert ((latents > 0).sum(-1) <= 16).all()


def test_encoding_scales_with_the_rows_that_it_was_trained_on():
    rows, _ = planted.sparse_rows(planted.atoms(64, 16), 2_000)
    train, config = ns.TrainConfig(rows=20_000), ns.SAEConfig.msae(d_sae=96, budgets=(2, 4))
    plain = ns.train_sae(ns.ActivationStore.from_tensor(rows), config, train, device="cpu", progress=False)
    big = ns.train_sae(ns.ActivationStore.from_tensor(1000 * rows + 7), config, train, device="cpu", progress=False)
    assert metrics.fvu(1000 * rows + 7, big.decode(big.encode(1000 * rows + 7))) == pytest.approx(
        metrics.fvu(rows, plain.decode(plain.encode(rows))), rel=0.1
    )


def test_sparse_encoding_is_the_same_as_dense(trained):
    dictionary, directions = trained
    rows, _ = planted.sparse_rows(directions, 20, seed=4)
    values, indices = dictionary.encode(rows, k=8, sparse=True)
    assert torch.equal(to_dense(values, indices, 512), dictionary.encode(rows, k=8))
    for start, stop in ((0, 4), (4, 8)):  # sorted within each round
        assert (values[:, start:stop].diff(dim=-1) <= 0).all()
    torch.testing.assert_close(dictionary.decode((values, indices)), dictionary.decode(dictionary.encode(rows, k=8)))
    levels = dictionary.decode_levels(*dictionary.encode(rows, sparse=True))
    for k, x_hat in zip((4, 8, 16), levels, strict=True):
        torch.testing.assert_close(x_hat, dictionary.decode(dictionary.encode(rows, k=k)))


def test_dictionary_comes_back_equal_through_files(trained, tmp_path):
    dictionary, directions = trained
    dictionary.save(tmp_path / "d")
    loaded = ns.Dictionary.load(tmp_path / "d")
    rows, _ = planted.sparse_rows(directions, 20, seed=5)
    assert torch.equal(loaded.encode(rows), dictionary.encode(rows))
    assert torch.equal(loaded.decode(loaded.encode(rows)), dictionary.decode(dictionary.encode(rows)))
    assert (loaded.budgets, loaded.site, loaded.model) == (dictionary.budgets, dictionary.site, dictionary.model)
    assert loaded.provenance == json.loads(json.dumps(dictionary.provenance))


def test_saving_refuses_a_path_that_exists_and_keeps_it(trained, tmp_path):
    dictionary, _ = trained
    dictionary.save(tmp_path / "d")
    with pytest.raises(PathExistsError, match="overwrite=True"):
        dictionary.save(tmp_path / "d")
    dictionary.save(tmp_path / "d", overwrite=True)
    assert len(list((tmp_path / "d").glob("*.safetensors"))) == 1


def test_loading_names_what_is_wrong(trained, tmp_path):
    dictionary, _ = trained
    with pytest.raises(InputNotFoundError, match=r"holds no dictionary\.json"):
        ns.Dictionary.load(tmp_path / "nothing")
    folder = dictionary.save(tmp_path / "d")
    header = json.loads((folder / "dictionary.json").read_text())
    (folder / "dictionary.json").write_text(json.dumps({**header, "version": 99}))
    with pytest.raises(FormatError, match="Update nb_sae"):
        ns.Dictionary.load(folder)
    (folder / "dictionary.json").write_text(json.dumps(header))
    weights = folder / header["weights"]
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FormatError, match="cannot be read"):
        ns.Dictionary.load(folder)


def test_from_weights_keeps_the_reconstruction_of_a_relu_dictionary():
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(6, 12, generator=generator), 3 * torch.randn(12, 6, generator=generator)
    b_enc, b_dec = torch.randn(12, generator=generator), torch.randn(6, generator=generator)
    x = torch.randn(9, 6, generator=generator)
    dictionary = ns.Dictionary.from_weights(W_enc, b_enc, W_dec, b_dec)
    expected = ((x - b_dec) @ W_enc + b_enc).relu() @ W_dec + b_dec
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=-1), torch.ones(12))


def test_rows_of_another_scale_width_or_model_are_refused(trained):
    dictionary, directions = trained
    rows, _ = planted.sparse_rows(directions, 500, seed=6)
    dictionary.check(ns.ActivationStore.from_tensor(rows))
    with pytest.raises(StoreError, match=r"another scale.*L2-normalised"):
        dictionary.check(ns.ActivationStore.from_tensor(10 * rows))
    with pytest.raises(StoreError, match="width 32"):
        dictionary.check(ns.ActivationStore.from_tensor(rows[:, :32]))
    with pytest.raises(StoreError, match="trained on model"):
        dictionary.check(ns.ActivationStore.from_tensor(rows, model="another"))
    with pytest.raises(ShapeError, match=r"takes \(rows, 64\)"):
        dictionary.encode(rows[:, :32])


# --- settings ------------------------------------------------------------------------------------------------------


def test_defaults_give_a_small_store_many_steps():
    train = ns.TrainConfig().resolve(4_000)
    assert train.rows == 1_000_000
    assert train.steps > 1_000
    assert ns.TrainConfig(epochs=2).resolve(4_000).rows == 8_000


def test_learning_rate_rises_holds_and_falls_to_nearly_zero():
    train = ns.TrainConfig(rows=100_000, batch_rows=100, learning_rate=1.0)
    rates = [train.rate_at(step) for step in range(train.steps)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[400] == 1.0
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize(
    ("d_in", "expected"), [(384, (16, 32, 64, 128)), (512, (16, 32, 64, 128)), (768, (32, 64, 128, 256))]
)
def test_default_budgets_run_from_a_24th_to_a_third(d_in, expected):
    assert default_budgets(d_in, 8 * d_in) == expected


def test_default_budgets_fit_tiny_dictionaries():
    assert default_budgets(2, 3) == (1,)
    assert max(default_budgets(64, 5)) <= 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ns.SAEConfig.topk(65, d_sae=64), "larger than d_sae=64"),
        (lambda: ns.SAEConfig.msae(expansion=2, budgets=(4, 200)).resolve(16), "larger than d_sae=32"),
        (lambda: ns.SAEConfig.msae(budgets=(8, 4)), "ascending"),
        (lambda: ns.SAEConfig.msae(budgets=(4, 8), level_weights=(1.0,)), "one weight for each"),
        (lambda: ns.SAEConfig.msae(d_sae=0), "d_sae ≥ 1"),
        (lambda: ns.TrainConfig(rows=10, epochs=2), "Give one of them"),
        (lambda: ns.TrainConfig(learning_rate=0), "above 0"),
    ],
)
def test_settings_outside_the_method_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_reverse_weights_are_largest_on_the_sparsest_budget():
    config = ns.SAEConfig.msae(d_sae=64, budgets=(1, 2, 4), level_weights="reverse")
    assert config.normalised_weights == pytest.approx((3 / 6, 2 / 6, 1 / 6))


def test_top_k_gives_zero_where_nothing_is_positive():
    values, _ = top_k(-torch.ones(2, 5), 3)
    assert (values == 0).all()
    with pytest.raises(ConfigError, match=r"outside \[1, d_sae=5\]"):
        top_k(torch.ones(2, 5), 6)
