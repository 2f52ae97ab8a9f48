"""The nearest rows in blocks are those of the whole matrix of cosines."""

from __future__ import annotations

import pytest
import torch
from flow_chains import unit

from nb_sae.errors import NonFiniteError
from nb_sae.flow.links import matching
from nb_sae.flow.links.matching import nearest_rows


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_sorting(targets, sources, k):
    """Cosine of every pair in float64; of equal ones the lower number first."""
    cosines = torch.nn.functional.normalize(targets.double(), dim=-1).nan_to_num() @ (
        torch.nn.functional.normalize(sources.double(), dim=-1).T
    )
    order = torch.argsort(-cosines, dim=-1, stable=True)[:, :k]
    return cosines.gather(1, order), order, cosines


@pytest.mark.parametrize(("sources", "block"), [(37, 7), (37, None), (5000, 16), (5000, None)])
def test_nearest_rows_are_those_of_the_whole_matrix(sources, block):
    a, b = rows(101, 24), rows(sources, 24, seed=1)
    found = nearest_rows(a, b, 5, block=block)
    cosines, order, whole = by_sorting(a, b, 5)
    assert torch.equal(found.sources, order)
    torch.testing.assert_close(found.cosines.double(), cosines, atol=2e-7, rtol=0)
    assert torch.equal(found.carried_to, whole.argmax(0))
    torch.testing.assert_close(found.carried.double(), whole.amax(0), atol=2e-7, rtol=0)


@pytest.mark.parametrize("copies", [3, 400])
def test_equal_rows_are_ranked_by_number(copies):
    base = rows(12, 16)
    sources = base.repeat(copies, 1)  # 36 rows without and 4,800 with the selection by groups
    found = nearest_rows(base, sources, 3)
    expected = torch.arange(12)[:, None] + torch.tensor([0, 12, 24])
    assert torch.equal(found.sources, expected)
    assert torch.equal(nearest_rows(sources, base, 1).carried_to, torch.arange(12))


def test_groups_with_many_equal_maxima_settle_ties_by_number():
    sources = torch.zeros(4096, 4)
    sources[:, 0] = 1.0
    sources[:, 1] = rows(4096, 1)[:, 0].round().clamp(-1, 1)  # three kinds of rows
    found = nearest_rows(torch.eye(4)[:1], sources, 8)
    assert torch.equal(found.sources[0], (sources[:, 1] == 0).nonzero().flatten()[:8])


@pytest.mark.parametrize("block", [1, 3, 64])
def test_the_block_changes_nothing(block):
    a, b = rows(64, 48), rows(3000, 48, seed=1)
    one, other = nearest_rows(a, b, 8, block=block), nearest_rows(a, b, 8)
    assert torch.equal(one.cosines, other.cosines)
    assert torch.equal(one.sources, other.sources)
    assert torch.equal(one.carried, other.carried)


def test_norms_do_not_matter_and_a_row_without_direction_has_cosine_0():
    a, b = rows(10, 8), rows(20, 8, seed=1)
    one = nearest_rows(a, b, 3)
    b_scaled, a_scaled = b * torch.rand(20, 1).add(0.1), a * 7
    other = nearest_rows(a_scaled, b_scaled, 3)
    assert torch.equal(one.sources, other.sources)
    torch.testing.assert_close(one.cosines, other.cosines, atol=1e-6, rtol=0)
    a_scaled[4] = 0
    assert torch.equal(nearest_rows(a_scaled, b_scaled, 3).cosines[4], torch.zeros(3))


def test_more_asked_than_there_are_gives_all_of_them():
    assert nearest_rows(rows(4, 8), rows(3, 8), 9).sources.sort(-1).values.tolist() == [[0, 1, 2]] * 4


def test_a_row_that_is_not_finite_is_named():
    bad = rows(6, 4)
    bad[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="Row 3 of the sources"):
        nearest_rows(rows(2, 4), bad, 1)


def test_cosines_are_never_all_held_at_once(monkeypatch):
    """Memory is bounded by the block, whatever the number of targets."""
    largest = []
    product = torch.mm

    def seen(*args, out, **options):
        largest.append(out.numel())
        return product(*args, out=out, **options)

    monkeypatch.setattr(torch, "mm", seen)
    monkeypatch.setattr(matching, "BLOCK_BYTES", 4 * 2048 * 32)
    nearest_rows(unit(512, 8, torch.Generator().manual_seed(0)), rows(2048, 8), 4)
    assert max(largest) <= 32 * 2048
