"""Matryoshka levels as a tree: planted parents, shuffled children, rows that go together."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from flow_planted import plain_dictionary, store_of

import nb_sae as ns
from nb_sae.errors import ConfigError, StoreError
from nb_sae.flow.effects.levels import level_tree
from nb_sae.flow.schema import TREE

F = 30
WIDTHS = (6, 14, F)
PARENT = {6: 0, 7: 0, 8: 1, 9: 2, 14: 6, 15: 6, 16: 9, 17: 3}
"""Child → parent: levels of 6, 8 and 16 latents. 14 and 15 have a parent on level 1, which itself has one."""
TRUE = {*PARENT.items(), (14, 0), (15, 0), (16, 2)}
"""With the parents' parents."""


def activity(rows: int = 6_000, *, seed: int = 0) -> torch.Tensor:
    draw = torch.rand(rows, F, generator=torch.Generator().manual_seed(seed))
    active = draw < torch.cat([torch.full((6,), 0.3), torch.full((8,), 0.1), torch.full((16,), 0.04)])
    for child, parent in PARENT.items():
        active[:, child] = active[:, parent] & (draw[:, child] < 0.4)
    return active


def dictionary_of(**about) -> ns.Dictionary:
    return plain_dictionary(torch.eye(F), "site", **about)


def pairs_of(tree) -> set[tuple[int, int]]:
    return set(tree.frame.select("child", "parent").iter_rows())


def test_planted_parents_are_found_across_three_levels():
    store = store_of(activity().float(), "site")
    tree = level_tree(dictionary_of(widths=WIDTHS), store)
    assert tree.frame.schema == TREE
    assert pairs_of(tree) == TRUE
    assert tree.found_null == 0
    assert set(tree.tree.select("child", "parent").iter_rows()) == set(PARENT.items())
    line = tree.frame.filter((pl.col("child") == 14) & (pl.col("parent") == 6)).row(0, named=True)
    assert (line["parent_level"], line["child_level"], line["conditional"]) == (1, 2, 1.0)
    active = activity()
    assert line["both_rows"] == int((active[:, 14] & active[:, 6]).sum())
    assert line["base_rate"] == pytest.approx(float(active[:, 6].double().mean()))
    assert tree.about["rows"] == 6_000
    assert tree.about["which"] == "all", "each row is an input of its own"


def test_shuffled_children_have_no_parents():
    active = activity()
    for child in range(6, F):
        order = torch.randperm(len(active), generator=torch.Generator().manual_seed(child))
        active[:, child] = active[order, child]
    tree = level_tree(dictionary_of(widths=WIDTHS), store_of(active.float(), "site"), at_least=1e-9)
    assert tree.tested > 150
    assert tree.frame.height <= 1
    assert tree.found_null <= 1


def test_levels_of_budgets_come_from_a_pass_or_from_the_analysis():
    """Of two budgets, level 0 holds what is strongest in its row: the parents are made four times as strong."""
    active = activity().float()
    strength = torch.where(torch.arange(F) < 6, 4.0, 1.0)
    active[:, :6] += 1e-3 * active[:, :6] * torch.arange(6)
    store = store_of(active * strength, "site")
    dictionary = dictionary_of(budgets=(2, 12))
    tree = level_tree(dictionary, store)
    levels = dict(tree.levels.select("latent", "level").iter_rows())
    assert {latent for latent, level in levels.items() if level == 0} == set(range(6))
    assert pairs_of(tree) >= {(6, 0), (7, 0), (8, 1), (9, 2), (17, 3)}
    analysis = ns.analyze(dictionary, store, progress=False)
    assert level_tree(dictionary, store, analysis=analysis).frame.equals(tree.frame)


def test_rows_of_one_input_count_once():
    """Every input gives twenty equal rows: together they would prove parents that are chance."""
    inputs = 60
    independent = torch.rand(inputs, F, generator=torch.Generator().manual_seed(5)) < torch.linspace(0.6, 0.2, F)
    rows = pl.DataFrame(
        {"input_id": [i // 20 for i in range(20 * inputs)], "token": [i % 20 for i in range(20 * inputs)]}
    )
    store = store_of(independent.repeat_interleave(20, 0).float(), "site", rows=rows)
    dictionary = dictionary_of(widths=WIDTHS)
    once = level_tree(dictionary, store)
    assert once.about["rows"] == inputs
    assert once.about["which"] == "one per input"
    assert once.frame.height <= 2
    everything = level_tree(dictionary, store, which="all")
    assert everything.frame.height > 10
    assert everything.found_null > everything.frame.height / 3, "and the null says that it is chance"
    assert everything.about["null"] == "shifted by half of the rows"


def test_true_parents_stand_above_the_shifted_null():
    """Contexts of eight rows in which a parent, where it is active at all, stays active."""
    contexts, length = 900, 8
    generator = torch.Generator().manual_seed(4)
    active = torch.rand(contexts, 1, F, generator=generator).expand(-1, length, -1) < 0.3
    active = (active & (torch.rand(contexts, length, F, generator=generator) < 0.5)).flatten(0, 1)
    for child, parent in PARENT.items():
        active[:, child] &= active[:, parent]
    rows = pl.DataFrame(
        {"input_id": [i // length for i in range(len(active))], "token": [i % length for i in range(len(active))]}
    )
    tree = level_tree(dictionary_of(widths=WIDTHS), store_of(active.float(), "site", rows=rows), which="all")
    assert pairs_of(tree) == TRUE
    assert tree.found_null == 0


def test_a_row_of_each_input_is_drawn_anew_with_each_seed():
    rows = pl.DataFrame({"input_id": [i // 4 for i in range(800)], "token": [i % 4 for i in range(800)]})
    store = store_of(activity(800).float(), "site", rows=rows)
    counts = [level_tree(dictionary_of(widths=WIDTHS), store, seed=seed).levels["rows"].to_list() for seed in (0, 0, 1)]
    assert counts[0] == counts[1] != counts[2]


def test_latents_that_are_never_active_are_left_out():
    active = activity()
    active[:, [3, 20]] = False
    tree = level_tree(dictionary_of(widths=WIDTHS), store_of(active.float(), "site"))
    assert not {3, 20} & set(tree.levels["latent"].to_list())
    assert tree.about["latents_left_out"] == 2
    some = level_tree(dictionary_of(widths=WIDTHS), store_of(active.float(), "site"), latents=[0, 6, 14])
    assert pairs_of(some) == {(6, 0), (14, 6), (14, 0)}


def test_what_has_no_levels_is_refused():
    store = store_of(activity(200).float(), "site")
    with pytest.raises(ConfigError, match="one level"):
        level_tree(dictionary_of(), store)
    with pytest.raises(ConfigError, match="one level"):
        level_tree(dictionary_of(budgets=(4,)), store)
    for given, message in (
        ({"dictionary": None}, "expected a Dictionary and a store"),
        ({"store": activity(200)}, "expected a Dictionary and a store"),
        ({"analysis": "a"}, "expected what ns.analyze gives"),
        ({"latents": 99}, "no latent 99"),
        ({"latents": []}, "latents="),
        ({"seed": -1}, "seed=-1"),
    ):
        asked = {"dictionary": dictionary_of(widths=WIDTHS), "store": store, **given}
        with pytest.raises(ConfigError, match=message):
            level_tree(asked.pop("dictionary"), asked.pop("store"), **asked)
    with pytest.raises(ConfigError, match="'all' or 'one per input'"):
        level_tree(dictionary_of(widths=WIDTHS), store, which="some")
    with pytest.raises(StoreError, match="site"):
        level_tree(dictionary_of(widths=WIDTHS), store_of(activity(200).float(), "elsewhere"))
    other = ns.analyze(dictionary_of(budgets=(1, 2)), store, progress=False)
    with pytest.raises(ConfigError, match="analysis of this dictionary"):
        level_tree(dictionary_of(budgets=(2, 12)), store, analysis=other)
