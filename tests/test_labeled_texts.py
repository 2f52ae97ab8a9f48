"""Labels of texts reach a bias report: by key, whatever their order, with one row per text."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import nb_sae as ns
from nb_sae.concepts.bias.making import bias_report
from nb_sae.errors import StoreError

D_IN, TEXTS = 12, 240


def planted(per_text: int) -> tuple[ns.Dictionary, ns.ActivationStore, ns.ActivationStore, pl.DataFrame]:
    """Rows of texts in which direction 0 stands for toxic texts and direction 1 grows with the year.

    Returns:
        A dictionary of the directions, the rows, the mean row of each text, and labels in another order.
    """
    rng = np.random.default_rng(0)
    toxic, year = rng.random(TEXTS) < 0.4, rng.integers(1990, 2020, TEXTS)
    x = torch.from_numpy(rng.uniform(0, 0.5, (TEXTS, per_text, D_IN)).astype(np.float32))
    x[..., 0] += torch.from_numpy(toxic.astype(np.float32))[:, None]
    x[..., 1] += torch.from_numpy((year - 1990) / 30).float()[:, None]
    texts = ns.texts([f"text {number}" for number in range(TEXTS)], keys=[f"t{number}" for number in range(TEXTS)])
    input_id, token = np.divmod(np.arange(TEXTS * per_text), per_text)
    rows = pl.DataFrame({"input_id": input_id, "token": token}, schema={"input_id": pl.UInt32, "token": pl.UInt32})
    store = ns.ActivationStore.from_tensor(x.flatten(0, 1), rows=rows, keys=list(texts.keys))
    # The recipe of docs/data.md.
    ids = torch.from_numpy(store.rows["input_id"].to_numpy().astype("int64"))
    sums = torch.zeros(len(texts), store.d_in).index_add_(0, ids, store[:].float())
    mean = sums / torch.bincount(ids, minlength=len(texts))[:, None]
    pooled = ns.ActivationStore.from_tensor(mean, keys=list(texts.keys), site=store.site.name, model=store.model)
    eye = torch.eye(D_IN)
    dictionary = ns.Dictionary.from_weights(eye, torch.zeros(D_IN), eye, torch.zeros(D_IN), site=store.site.name)
    order = rng.permutation(TEXTS)
    table = pl.DataFrame(
        {
            "id": [f"t{number}" for number in order],
            "toxic": [None if number == 7 else bool(toxic[number]) for number in order],
            "year": year[order],
        }
    )
    return dictionary, store, pooled, ns.attributes(texts, table, key="id")


def test_labels_of_texts_find_the_concept_that_was_planted():
    dictionary, _, pooled, labels = planted(4)
    found = bias_report(dictionary, pooled, labels, "toxic", [0, 1, 2, 3], classifier=None).association
    effect = dict(zip(found["latent"], found["effect"], strict=True))
    assert effect[0] > 0.95
    assert max(abs(effect[latent]) for latent in (1, 2, 3)) < 0.25
    assert found["missing"].unique().to_list() == [1]
    by_year = bias_report(dictionary, pooled, labels, "year", [0, 1, 2], classifier=None).association
    effect = dict(zip(by_year["latent"], by_year["effect"], strict=True))
    assert effect[1] > 0.9
    assert max(abs(effect[0]), abs(effect[2])) < 0.25


def test_tokens_of_texts_are_refused_with_what_to_do():
    dictionary, store, _, labels = planted(4)
    with pytest.raises(StoreError, match=r"960 rows of 240 inputs.*average the rows of each input"):
        bias_report(dictionary, store, labels, "toxic", [0, 1], classifier=None)
