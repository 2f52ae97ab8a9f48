"""A dictionary by itself: its rules dense and sparse, and the short ways to other libraries."""

from __future__ import annotations

import planted
import pytest
import torch

import nb_sae as ns
from nb_sae.errors import ConfigError
from nb_sae.sae.sparsity import to_dense


def weights(d_sae: int = 24, d: int = 8, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    W_dec = planted.atoms(d_sae, d)
    return {"W_enc": W_dec.T, "b_enc": torch.zeros(d_sae), "W_dec": W_dec, "b_dec": torch.zeros(d), **more}


@pytest.fixture
def rows() -> torch.Tensor:
    return planted.sparse_rows(planted.atoms(24, 8), 60, active=2)[0]


def test_a_threshold_rule_gives_the_same_latents_sparse_and_dense_whatever_its_budgets_learned(rows):
    """No row keeps as many as the largest budget: the factors of smaller budgets must not reach the rule of its own."""
    learned = weights(threshold=torch.full((24,), 0.9), level_scale=torch.tensor([3.0, 2.0, 1.0]))
    one = ns.Dictionary(learned, sparsity="batch_top_k", budgets=(1, 4, 20))
    dense = one.encode(rows)
    assert 1 < int((dense > 0).sum(-1).max()) < 20
    torch.testing.assert_close(to_dense(*one.encode(rows, sparse=True), 24), dense)
    torch.testing.assert_close(one.reconstruct(rows), one.decode(dense))


@pytest.mark.parametrize(
    ("about", "sets_k"),
    [
        ({"budgets": (4,)}, True),
        ({"budgets": (2, 4)}, True),
        ({"sparsity": "batch_top_k", "budgets": (4,)}, False),
        ({"sparsity": "relu"}, False),
        ({"sparsity": "jump_relu"}, False),
    ],
)
def test_a_dictionary_says_whether_its_rule_sets_the_number_of_active_latents(rows, about, sets_k):
    extra = {"threshold": torch.full((24,), 0.3)} if about.get("sparsity") in ("batch_top_k", "jump_relu") else {}
    one = ns.Dictionary(weights(**extra), **about)
    assert one.sets_k == sets_k
    values, _, x_hats = one.reconstruct_levels(rows)
    assert ((values > 0).sum(-1).unique().numel() == 1) == sets_k
    assert len(x_hats) == len(one.rank_budgets)
    torch.testing.assert_close(x_hats[-1], one.reconstruct(rows))


def test_export_push_and_from_pretrained_are_the_functions_of_the_same_name(rows, tmp_path):
    one = ns.Dictionary(weights(), budgets=(2, 4), site="mlp")
    folder = one.export(tmp_path / "saelens", format="saelens")
    by_function = ns.export_dictionary(one, tmp_path / "other", format="saelens")
    assert {file.name for file in folder.iterdir()} == {file.name for file in by_function.iterdir()}
    back = ns.Dictionary.from_pretrained(folder, verbose=False)
    torch.testing.assert_close(back.encode(rows), one.encode(rows))
    where = one.push_to_hub(str(tmp_path / "hub"), subfolder="a")
    again = ns.Dictionary.from_pretrained(where, subfolder="a", verbose=False)
    assert torch.equal(again.encode(rows), one.encode(rows))
    assert (again.budgets, again.site) == ((2, 4), "mlp")
    with pytest.raises(ConfigError, match="Closest: saelens"):
        one.export(tmp_path / "c", format="saelen")
