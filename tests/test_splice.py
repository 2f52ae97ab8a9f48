"""A dictionary in place of a site: the reconstruction, nothing else, and nothing at all with the error kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from metric_fakes import dictionary_of, gaussian
from torch import nn

import nb_sae as ns
from nb_sae import hooks
from nb_sae.errors import ConfigError, ShapeError

WIDTH = 16
KINDS = {
    "top-k": {"budgets": (2, 4)},
    "rounds": {"budgets": (2, 4), "residual": True},
    "relu": {"budgets": None, "sparsity": "relu"},
    "layer norm": {"budgets": (2, 4), "row_norm": "layer_norm"},
}


def small(**about) -> ns.Dictionary:
    return dictionary_of(torch.linalg.qr(gaussian(WIDTH, WIDTH)).Q, **{"site": "0", **about})


def identity(width: int = WIDTH, **about) -> ns.Dictionary:
    """Positive and negative parts: x̂ is x, bit for bit."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return dictionary_of(both, budgets=None, **{"site": "0", **about})


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


@pytest.mark.parametrize("about", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("k", [None, 2])
def test_a_splice_runs_the_model_on_the_reconstruction(model, about, k):
    dictionary, x = small(**about), gaussian(5, 7, WIDTH).float()
    rows = model[0](x).reshape(-1, WIDTH)
    expected = model[2](model[1](dictionary.reconstruct(rows, k).view(5, 7, WIDTH)))
    with ns.intervene(model, dictionary.splice(k)):
        given = model(x)
    torch.testing.assert_close(given, expected)
    assert (given - model(x)).abs().max() > 1e-3


def test_a_splice_that_keeps_the_error_and_the_identity_dictionary_change_no_bit(model):
    x = gaussian(5, WIDTH).float()
    clean = model(x)
    for edit in (small().splice(keep_error=True), identity().splice()):
        with ns.intervene(model, edit):
            assert torch.equal(model(x), clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_splice_gives_back_the_dtype_and_shape_it_got(dtype):
    edit = small().splice()
    for shape in [(WIDTH,), (3, WIDTH), (2, 3, WIDTH), (0, WIDTH)]:
        x = gaussian(*shape).to(dtype)
        assert edit.apply(x).dtype == dtype
        assert edit.apply(x).shape == x.shape


def test_a_splice_says_what_it_cannot_do():
    with pytest.raises(ConfigError, match="Give site="):
        small(site=None).splice()
    assert small(site=None).splice(site="2").site == "2"
    with pytest.raises(ConfigError, match="transcoder reads '0' and writes 'other'"):
        small(target="other").splice()
    for wrong in (2.5, "2", True):
        with pytest.raises(ConfigError, match=f"k={wrong!r} is outside"):
            dictionary_of(torch.eye(4), site="0").splice(wrong)
    with pytest.raises(ConfigError, match="k=17 is outside"):
        small().splice(17)
    with pytest.raises(ShapeError, match=r"\(2, 5\) were given"):
        small().splice().apply(torch.zeros(2, 5))


def test_a_hook_that_an_interrupt_left_edits_nothing(model, monkeypatch):
    """An interrupt may come between the removal of two hooks."""
    x = gaussian(5, WIDTH).float()
    clean = model(x)
    install = hooks._install

    def interrupted():
        raise KeyboardInterrupt

    def never_removed(*given):
        install(*given)
        return SimpleNamespace(remove=interrupted)

    monkeypatch.setattr(hooks, "_install", never_removed)
    with pytest.raises(KeyboardInterrupt), ns.intervene(model, small()):
        assert not torch.equal(model(x), clean)
    assert model[0]._forward_hooks, "one was left, or this test shows nothing"
    assert torch.equal(model(x), clean)
