"""Rows that training should refuse, or survive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sessions import CONFIG, CONFIGS, TRAIN, rows, start

import nb_sae as ns
from nb_sae.errors import ConfigError, NonFiniteError, StoreError


def store(x, **others) -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(x, **others)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["duplicates", "a dimension that never varies", "three rows", "far from 0"])
def test_odd_rows_train_to_finite_weights(kind, name):
    x = {
        "duplicates": rows(4).repeat(100, 1),
        "a dimension that never varies": torch.cat([rows()[:, :7], torch.full((400, 1), 3.0)], 1),
        "three rows": rows(3),
        "far from 0": rows() + 1e4,
    }[kind]
    session = start(store(x), CONFIGS[name], ns.TrainConfig(rows=640, batch_rows=32)).run(progress=False)
    dictionary = session.dictionary
    assert all(one.isfinite().all() for one in (dictionary.W_enc, dictionary.W_dec, dictionary.b_dec))
    assert session.log["loss"].is_finite().all()
    assert dictionary.reconstruct(x).isfinite().all()


def test_rows_that_say_nothing_are_refused():
    for x, message in ((torch.ones(10, 4), "All rows are equal"), (torch.ones(1, 4), "at least 2")):
        with pytest.raises(StoreError, match=message):
            start(store(x))


def test_rows_that_are_not_finite_are_refused_when_they_are_given():
    for value in (float("nan"), float("inf")):
        x = rows()
        x[17, 3] = value
        with pytest.raises(NonFiniteError, match="17"):
            store(x)


def test_rows_in_float16_near_its_end_train():
    x = (rows() * 3e4).clamp(-65_000, 65_000).to(torch.float16)
    session = start(store(x)).run(progress=False)
    assert session.log["loss"].is_finite().all()
    assert np.isfinite(session.dictionary.mean_square_distance)


def test_settings_that_do_not_fit_the_rows_are_refused():
    for config, message in (
        (ns.SAEConfig.msae(expansion=2, budgets=(4, 200)), "larger than d_sae=16"),
        (ns.SAEConfig.msae(expansion=2, widths=(4, 8)), "must end at d_sae=16"),
    ):
        with pytest.raises(ConfigError, match=message):
            start(store(rows()), config)
    assert start(store(rows()), CONFIG, TRAIN).step == 0
