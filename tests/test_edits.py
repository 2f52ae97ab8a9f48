"""Edits of latents, on rows and in running models: what they change, and that nothing else changes."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from metric_fakes import dictionary_of, gaussian
from torch import nn

import nb_sae as ns
from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.edits import percentile


@pytest.fixture
def noisy(orthogonal):
    """Rows with what the dictionary does not explain."""
    dictionary, rows, _ = orthogonal
    return dictionary, rows[:200] + 0.3 * gaussian(200, 32, seed=7).float()


KINDS = {
    "top-k": {"budgets": (2, 4)},
    "rounds": {"budgets": (2, 4), "residual": True},
    "relu": {"budgets": None, "sparsity": "relu"},
    "layer norm": {"budgets": (2, 4), "row_norm": "layer_norm"},
    "constant norm": {"budgets": (2, 4), "row_norm": "constant_norm"},
}


@pytest.mark.parametrize("about", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_edit_that_changes_nothing_gives_the_same_bits(about, dtype):
    dictionary = dictionary_of(torch.linalg.qr(gaussian(16, 16)).Q, **about)
    x = (3 * gaussian(50, 16, seed=2)).to(dtype)
    for edited in (
        dictionary.edit_rows(x, scale={3: 1.0, 5: 1.0}),
        dictionary.edit_rows(x, add={3: 0.0}),
        dictionary.edit_rows(x, clamp={3: (0.0, None), 5: (None, 1e6)}),
        dictionary.edit_rows(x),
    ):
        assert edited.dtype == dtype
        assert torch.equal(edited, x)
    for row in x[:5].split(1):
        z = dictionary.encode(row.float())[0].tolist()
        assert torch.equal(dictionary.edit_rows(row, set=dict(enumerate(z))), row)
        off = [latent for latent, value in enumerate(z) if value == 0]
        assert torch.equal(dictionary.edit_rows(row[0], remove=off), row[0])


def test_set_add_scale_clamp_and_remove_do_what_they_say_and_keep_the_error(noisy):
    dictionary, x = noisy
    z = dictionary.encode(x)
    error = x - dictionary.decode(z)
    expected = z.clone()
    expected[:, 1] = 2.5
    expected[:, 2] += 0.75
    expected[:, 3] *= -0.5
    expected[:, 4] = expected[:, 4].clamp(0.6, 0.9)
    expected[:, 5] = 0
    edited = dictionary.edit_rows(
        x, set={1: 2.5}, add={2: 0.75}, scale={3: -0.5}, clamp={4: (0.6, 0.9)}, remove=[5]
    )  # fmt: skip
    torch.testing.assert_close(edited, dictionary.decode(expected) + error, atol=1e-5, rtol=0)
    assert (edited - x).abs().max() > 0.5


@pytest.mark.parametrize("row_norm", ["layer_norm", "constant_norm"])
def test_an_edit_moves_a_normalised_row_by_its_own_scale(row_norm):
    dictionary = dictionary_of(torch.linalg.qr(gaussian(16, 16)).Q, budgets=(4,), row_norm=row_norm)
    x = 3 * gaussian(20, 16, seed=2).float()
    z = dictionary.encode(x)
    changed = z.clone()
    changed[:, 2] = 1.5
    scale = dictionary.reconstruct(2 * x).norm(dim=-1) / dictionary.reconstruct(x).norm(dim=-1)
    torch.testing.assert_close(scale, torch.full((20,), 2.0), atol=1e-3, rtol=0)  # what the norm does to x̂
    step = dictionary.decode(changed) - dictionary.decode(z)
    moved = dictionary.edit_rows(x, set={2: 1.5}) - x
    ratio = x.std(-1, keepdim=True) if row_norm == "layer_norm" else x.norm(dim=-1, keepdim=True) / 4
    torch.testing.assert_close(moved, step * ratio, atol=1e-5, rtol=0)


def test_a_constant_needs_no_encoder_and_is_the_same_in_every_row(noisy, monkeypatch):
    dictionary, x = noisy
    monkeypatch.setattr(dictionary, "encode", None)
    step = dictionary.edit_rows(x, add={7: 1.25}) - x
    torch.testing.assert_close(step, (1.25 * dictionary.W_dec[7]).expand_as(step), atol=1e-6, rtol=0)


class Blocks(nn.Module):
    """Tokens through two linear maps; the mean of the tokens is pooled."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(6, 32)
        self.pooled = nn.Identity()
        self.last = nn.Linear(32, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        return self.last(self.pooled(self.first(x).mean(1)))


@pytest.mark.parametrize(("site", "shape"), [("first", (4, 7, 32)), ("pooled", (4, 32))])
def test_intervene_applies_an_edit_at_token_sites_and_at_pooled_ones(orthogonal, site, shape):
    dictionary, model = orthogonal[0], Blocks()
    inputs = gaussian(4, 7, 6, seed=3).float()
    with torch.no_grad(), ns.capture(model, site) as before:
        plain = model(inputs)
    assert before[site].shape == shape
    with torch.no_grad(), ns.intervene(model, dictionary.steer(5, scale=1.0, site=site)):
        assert torch.equal(model(inputs), plain)
    edit = dictionary.steer(5, set=40.0, site=site)
    expected = dictionary.edit_rows(before[site], set={5: 40.0})
    torch.testing.assert_close(edit.apply(before[site]), expected)
    assert edit.label == "set 40.0 on latent 5"
    with torch.no_grad(), ns.intervene(model, edit):
        steered = model(inputs)
    by_hand = model.last(expected if site == "pooled" else expected.mean(1))
    torch.testing.assert_close(steered, by_hand)
    assert (steered - plain).abs().max() > 1
    with torch.no_grad():
        assert torch.equal(model(inputs), plain)


def test_ablate_and_clamp_are_edits_of_the_dictionary_s_own_site(orthogonal):
    directions, rows = orthogonal[0].W_dec, orthogonal[1][:50]
    dictionary = dictionary_of(directions, budgets=(1, 2, 4), site="pooled")
    z = dictionary.encode(rows)
    active = z.sum(0).topk(2).indices.tolist()
    off, capped = dictionary.ablate(active), dictionary.clamp(active[0], high=0.5)
    assert off.site == capped.site == "pooled"
    assert (off.apply(rows) @ directions[active].T).abs().max() < 1e-5
    assert float((capped.apply(rows) @ directions[active[0]]).max()) == pytest.approx(0.5, abs=1e-5)


def test_an_edit_lets_gradients_pass_as_a_constant_does(noisy):
    dictionary, x = noisy
    x = x.clone().requires_grad_()
    dictionary.edit_rows(x, set={3: 2.0}).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


class Histogram:
    """An analysis of two latents: one is never active, the other's activations are known."""

    def __init__(self, values: torch.Tensor) -> None:
        top = float(values.max()) * 1.3
        counts = torch.histc(values, bins=64, min=0, max=top).long().tolist()
        self.latents = pl.DataFrame(
            {"latent": [0, 1], "active_rows": [0, len(values)], "max": [0.0, float(values.max())],
             "histogram": [[0] * 64, counts], "histogram_max": [0.0, top]}
        )  # fmt: skip


def test_p99_is_the_99th_percentile_of_the_active_rows(noisy):
    dictionary, x = noisy
    values = gaussian(20_000, seed=5).float().exp()
    analysis = Histogram(values)
    true = float(values.quantile(0.99))
    assert percentile(analysis, 1) == pytest.approx(true, rel=0.03)
    by_unit = dictionary.edit_rows(x, set={1: 2.0}, unit="p99", analysis=analysis)
    torch.testing.assert_close(by_unit, dictionary.edit_rows(x, set={1: 2 * percentile(analysis, 1)}))
    with pytest.raises(ConfigError, match="never active"):
        dictionary.edit_rows(x, set={0: 1.0}, unit="p99", analysis=analysis)
    with pytest.raises(ConfigError, match=r"give analysis= \(from ns.analyze\)"):
        dictionary.edit_rows(x, set={1: 1.0}, unit="p99")


class Words:
    def find(self, name: str) -> int:
        return {"eyeglasses": 4}[name]


def test_latents_have_names_where_somebody_knows_them(noisy):
    dictionary, x = noisy
    named = dictionary.edit_rows(x, set={"eyeglasses": 2.0}, names=Words())
    assert torch.equal(named, dictionary.edit_rows(x, set={4: 2.0}))
    assert dictionary.steer("eyeglasses", add=1.0, names=Words(), site="x").label == "add 1.0 on latent 4"
    with pytest.raises(ConfigError, match="give names="):
        dictionary.edit_rows(x, set={"eyeglasses": 2.0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: d.edit_rows(x, set={99: 1.0}), "no latent 99; this dictionary has 0 … 31"),
        (lambda d, x: d.edit_rows(x, set={True: 1.0}), "given as True"),
        (lambda d, x: d.edit_rows(x, set={1: float("nan")}), "expected a finite number"),
        (lambda d, x: d.edit_rows(x, set={1: "much"}), "expected a finite number"),
        (lambda d, x: d.edit_rows(x, set=3), "give a mapping"),
        (lambda d, x: d.edit_rows(x, set={1: 1.0}, remove=[1]), "Latent 1 is changed twice"),
        (lambda d, x: d.edit_rows(x, clamp={1: (2.0, 1.0)}), "low not above high"),
        (lambda d, x: d.edit_rows(x, clamp={1: (None, None)}), "give low= or high="),
        (lambda d, x: d.edit_rows(x, unit="sigma"), "Use 'activation' or 'p99'"),
        (lambda d, x: d.steer(1, add=1.0, set=2.0), "was given add, set. Give one"),
        (lambda d, x: d.steer(1), "was given no change"),
        (lambda d, x: d.ablate([1]), "does not say which site"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_with_what_to_do(noisy, call, message):
    with pytest.raises(ConfigError, match=message):
        call(*noisy)


def test_rows_of_another_width_and_transcoders_are_refused(noisy):
    dictionary, x = noisy
    with pytest.raises(ShapeError, match=r"takes \(…, 32\)"):
        dictionary.edit_rows(x[:, :8], add={1: 1.0})
    transcoder = dictionary_of(gaussian(8, 32), site="in", target="out", pre_bias=False)
    with pytest.raises(ConfigError, match="Edit with an SAE of the site"):
        transcoder.steer(1, add=1.0)


def test_no_rows_stay_no_rows(noisy):
    assert noisy[0].edit_rows(torch.zeros(0, 32), set={1: 1.0}).shape == (0, 32)
