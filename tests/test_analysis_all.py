"""`analyze_all`: the same tables as one by one, with every picture read once."""

from __future__ import annotations

import planted
import polars as pl
import pytest
import torch
from PIL import Image
from polars.testing import assert_frame_equal

import nb_sae as ns
from nb_sae.errors import ConfigError, InputError


class Counted:
    """Images that count how often they are read."""

    modality = "image"
    name = "counted"

    def __init__(self, count: int) -> None:
        self.keys = [f"{n}.png" for n in range(count)]
        self.read = [0] * count

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Image.Image:
        self.read[number] += 1
        return Image.new("RGB", (16, 16), (number * 5 % 256, 60, 60))


@pytest.fixture
def many() -> tuple[dict[str, ns.Dictionary], dict[str, ns.ActivationStore], Counted]:
    inputs, dictionaries, stores = Counted(40), {}, {}
    ids = pl.DataFrame({"input_id": [n // 4 for n in range(160)], "token": [n % 4 for n in range(160)]})
    for number, site in enumerate(("blocks.0", "blocks.1")):
        atoms = planted.atoms(12, 8, seed=number)
        rows, _ = planted.sparse_rows(atoms, 160, active=2, seed=number)
        stores[site] = ns.ActivationStore.from_tensor(rows, rows=ids, keys=inputs.keys, site=site)
        dictionaries[site] = ns.Dictionary.from_weights(
            atoms.T.contiguous(), torch.full((12,), -0.1), atoms, torch.zeros(8), budgets=(1, 2), site=site
        )
    return dictionaries, stores, inputs


def test_tables_are_those_of_analyze_and_each_picture_is_read_once(many):
    dictionaries, stores, inputs = many
    found = ns.analyze_all(dictionaries, stores, inputs, top=3, progress=False)
    assert list(found) == ["blocks.0", "blocks.1"]
    assert max(inputs.read) == 1
    for site, analysis in found.items():
        alone = ns.analyze(dictionaries[site], stores[site], inputs, top=3, progress=False)
        for table in ("latents", "examples", "quality", "inputs", "pictures"):
            assert_frame_equal(getattr(analysis, table), getattr(alone, table))
        assert analysis.title == alone.title


def test_a_site_without_rows_and_other_inputs_are_refused_before_the_work(many):
    dictionaries, stores, _ = many
    with pytest.raises(ConfigError, match=r"No rows are given for 'blocks\.1'"):
        ns.analyze_all(dictionaries, {"blocks.0": stores["blocks.0"]}, progress=False)
    with pytest.raises(ConfigError, match="No dictionaries"):
        ns.analyze_all({}, stores, progress=False)
    with pytest.raises(InputError, match="10 were given"):
        ns.analyze_all(dictionaries, stores, Counted(10), progress=False)
