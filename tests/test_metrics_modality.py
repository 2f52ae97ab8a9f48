"""A dictionary read on another modality: the three centrings, planted shifts, the units of the rows."""

from __future__ import annotations

import math

import planted
import polars as pl
import pytest
import torch
from metric_fakes import dictionary_of, gaussian

import nb_sae as ns
from nb_sae.errors import ConfigError
from nb_sae.sae import metrics


def test_cross_modal_says_how_rows_were_centred_and_their_own_mean_repairs_a_shift():
    directions = torch.linalg.qr(gaussian(32, 32)).Q.float()
    images, _ = planted.sparse_rows(directions, 2_000)
    mean = images.mean(0)
    texts = 3 * (planted.sparse_rows(directions, 1_000, seed=5)[0] - mean) + mean + 2
    distance = float((images - mean).square().sum(-1).mean())
    dictionary = dictionary_of(directions, mean=mean, mean_square_distance=distance)
    frame = metrics.cross_modal({"image": dictionary}, {"image": images, "text": texts}, (2, 4))
    assert frame.height == 2 * 3 * 2

    def fvu(read_on: str, centring: str) -> float:
        chosen = (pl.col("read_on") == read_on) & (pl.col("centring") == centring) & (pl.col("k") == 4)
        return frame.filter(chosen)["fvu"][0]

    assert fvu("image", "dictionary") < 1e-6
    assert fvu("image", "own mean") == pytest.approx(fvu("image", "dictionary"), abs=1e-6)
    assert fvu("text", "dictionary") > 0.2
    assert fvu("text", "own mean and scale") < 0.05 < fvu("text", "own mean")
    one = frame.filter((pl.col("read_on") == "text") & (pl.col("centring") == "dictionary") & (pl.col("k") == 2))
    x_hat = dictionary.decode(dictionary.encode(texts, k=2))
    assert one["fvu"][0] == pytest.approx(metrics.fvu(texts, x_hat), rel=1e-4)
    assert one["cosine"][0] == pytest.approx(metrics.cosine(texts, x_hat), rel=1e-5)


def test_cross_modal_measures_in_the_units_of_the_rows_it_reads():
    directions = torch.linalg.qr(gaussian(16, 16)).Q.float()
    images, _ = planted.sparse_rows(directions, 500)
    dictionary = dictionary_of(directions, mean=images.mean(0), mean_square_distance=1.3)
    texts = 5 * images.flip(0) + 1
    frame = metrics.cross_modal({"image": dictionary}, {"text": ns.ActivationStore.from_tensor(texts)}, (3,))
    scale = math.sqrt(1.3 / float((texts - texts.mean(0)).square().sum(-1).mean()))
    for centring, s in (("own mean", 1.0), ("own mean and scale", scale)):
        moved = (texts - texts.mean(0)) * s + dictionary.mean
        x_hat = (dictionary.decode(dictionary.encode(moved, k=3)) - dictionary.mean) / s + texts.mean(0)
        line = frame.filter(pl.col("centring") == centring)
        assert line["fvu"][0] == pytest.approx(metrics.fvu(texts, x_hat), rel=1e-4)
        assert line["cosine"][0] == pytest.approx(metrics.cosine(texts, x_hat), rel=1e-5)


def test_cross_modal_needs_the_training_mean():
    with pytest.raises(ConfigError, match="'image' does not know the mean"):
        metrics.cross_modal({"image": dictionary_of(planted.atoms(4, 3))}, {"text": torch.ones(3, 3)}, (1,))
    with pytest.raises(ConfigError, match="Nothing to compare"):
        metrics.cross_modal({}, {"text": torch.ones(3, 3)}, (1,))


def test_cross_modal_refuses_a_transcoder():
    weights = {"W_enc": torch.ones(4, 6), "b_enc": torch.zeros(6), "W_dec": torch.ones(6, 4), "b_dec": torch.zeros(4)}
    transcoder = ns.Dictionary(weights, target="mlp_out", pre_bias=False, mean=torch.zeros(4), mean_square_distance=1.0)
    with pytest.raises(ConfigError, match="does not reconstruct the rows that it reads"):
        metrics.cross_modal({"image": transcoder}, {"text": torch.randn(9, 4)}, (1,))
