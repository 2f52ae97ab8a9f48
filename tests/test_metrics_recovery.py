"""Quality against k: one encode equals one per k, planted ends, rows that define nothing."""

from __future__ import annotations

import math

import planted
import polars as pl
import pytest
import torch
from metric_fakes import dictionary_of

import nb_sae as ns
from nb_sae.errors import ConfigError, NonFiniteError, ShapeError, StoreError
from nb_sae.sae import metrics
from nb_sae.sae.metrics.rows import rows_at_a_time


def test_recovery_curve_equals_one_encode_per_k(orthogonal):
    dictionary, rows, _ = orthogonal
    curve = metrics.recovery_curve(dictionary, rows, (1, 2, 3, 8), chunk_rows=999)
    for line in curve.iter_rows(named=True):
        latents = dictionary.encode(rows, k=line["k"])
        x_hat = dictionary.decode(latents)
        assert line["fvu"] == pytest.approx(metrics.fvu(rows, x_hat), rel=1e-5, abs=1e-9)
        assert line["cosine"] == pytest.approx(metrics.cosine(rows, x_hat), rel=1e-6)
        assert line["l0"] == pytest.approx(metrics.l0(latents))
        assert line["dead"] == pytest.approx(float((latents == 0).all(0).float().mean()))
        assert line["rows"] == 3_000


def test_recovery_ends_at_the_number_of_atoms_in_a_row(orthogonal):
    dictionary, rows, _ = orthogonal
    curve = metrics.recovery_curve(dictionary, ns.ActivationStore.from_tensor(rows))
    assert curve["k"].to_list() == [1, 2, 4, 8, 16, 32]
    assert curve["fvu"][:3].is_sorted(descending=True)
    assert curve.filter(pl.col("k") == 2)["fvu"][0] > 0.1
    assert curve.filter(pl.col("k") == 4)["fvu"][0] < 1e-9
    assert curve.filter(pl.col("k") == 32)["dead"][0] == 0


def test_recovery_of_normalised_rows_undoes_the_norm(orthogonal):
    plain, rows, _ = orthogonal
    weights = {name: getattr(plain, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    normed = ns.Dictionary(weights, budgets=(4,), row_norm="constant_norm")
    curve = metrics.recovery_curve(normed, 5 * rows, (4,))
    assert curve["fvu"][0] < 1e-9


def test_recovery_of_three_equal_rows_has_no_variance_to_explain(orthogonal):
    curve = metrics.recovery_curve(orthogonal[0], torch.ones(3, 32), (1,))
    assert math.isnan(curve["fvu"][0])


@pytest.mark.parametrize(
    ("rows", "ks", "error", "message"),
    [
        (torch.ones(5, 32), (4, 2), ConfigError, "ascending numbers from 1 to d_sae=32"),
        (torch.ones(5, 32), (0,), ConfigError, "ascending"),
        (torch.ones(5, 32), (33,), ConfigError, "d_sae=32"),
        (torch.ones(5, 31), (4,), ShapeError, "width 31"),
        (torch.ones(0, 32), (4,), ShapeError, "at least one"),
        (torch.full((5, 32), torch.inf), (4,), NonFiniteError, "Row 0"),
    ],
)
def test_recovery_refuses_bad_rows_and_ks(orthogonal, rows, ks, error, message):
    with pytest.raises(error, match=message):
        metrics.recovery_curve(orthogonal[0], rows, ks)


def test_a_large_dictionary_takes_fewer_rows_at_a_time():
    large, small = dictionary_of(planted.atoms(2**14, 4)), dictionary_of(planted.atoms(8, 4))
    assert rows_at_a_time(None, small) == 4096
    assert rows_at_a_time(None, small, large) == 512
    assert rows_at_a_time(7, large) == 7
    with pytest.raises(ConfigError, match="chunk_rows=0"):
        metrics.recovery_curve(small, torch.ones(3, 4), (1,), chunk_rows=0)


def test_a_transcoder_is_refused_where_x_hat_would_be_compared_with_x():
    weights = {"W_enc": torch.ones(4, 6), "b_enc": torch.zeros(6), "W_dec": torch.ones(6, 5), "b_dec": torch.zeros(5)}
    transcoder = ns.Dictionary(weights, target="mlp_out", pre_bias=False)
    with pytest.raises(StoreError, match=r"reads None, width 4; writes 'mlp_out', width 5.*ns\.pair\(x, y\)"):
        metrics.recovery_curve(transcoder, torch.ones(3, 4), (1,))
