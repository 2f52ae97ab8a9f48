from __future__ import annotations

import pytest
import torch
from rank_workers import nested_problem, together

from nb_sae.errors import ConfigError
from nb_sae.sae import distributed
from nb_sae.sae.dead import dead_latent_loss
from nb_sae.sae.distributed import Alone
from nb_sae.sae.nested import nested_loss


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("widths", [False, True])
def test_the_loss_of_a_split_dictionary_is_that_of_the_whole(tmp_path, widths):
    problem = nested_problem(widths)
    pre, W_dec, b_dec = (problem.pop(name).requires_grad_() for name in ("pre", "W_dec", "b_dec"))
    whole = nested_loss(problem.pop("target"), pre, W_dec, b_dec, **problem)
    (3 * whole.loss).backward()
    dead = torch.arange(24) % 5 == 1
    aux = dead_latent_loss(whole.residual, pre, W_dec, dead, 3)
    aux_pre, aux_W = torch.autograd.grad(aux, [pre, W_dec])
    parts = together("split_loss", tmp_path, world=3, widths=widths)
    for part in parts:
        for name in ("loss", "errors", "residual", "thresholds"):
            close(part[name], getattr(whole, name).detach())
        close(part["aux"], aux.detach())
        assert part["none"] == 0
    assert torch.equal(torch.cat([part["fired"] for part in parts], 1), whole.fired)
    close(torch.cat([part["pre"] for part in parts], 1), pre.grad)
    close(torch.cat([part["W_dec"] for part in parts]), W_dec.grad)
    close(torch.stack([part["b_dec"] for part in parts]).sum(0), b_dec.grad)
    close(torch.cat([part["aux_pre"] for part in parts], 1), aux_pre)
    close(torch.cat([part["aux_W"] for part in parts]), aux_W)


def test_rows_and_latents_can_both_be_shared_out(tmp_path):
    """Four processes: ranks 0 and 1 hold the halves of one dictionary, 2 and 3 those of its copy."""
    found = together("collectives", tmp_path, world=4)
    for rank, one in enumerate(found):
        assert one["share"] == (rank, 4)
        assert one["shares"] == (2, 2, rank % 2)
        assert one["batch"].flatten().tolist() == ([0, 1] if rank < 2 else [2, 3])
        assert one["mean"][0].item() == 1.5
        assert one["mean"][1].item() == 3.0  # 2 · mean · (the gradient of the local value)
        assert one["any"].tolist() == ([False, False, False] if rank % 2 == 0 else [True, True, False])
        assert one["scalar"].item() is True
        assert one["smallest"].item() == rank % 2
        assert one["rows"].tolist() == [rank % 2, rank % 2 + 2]
        assert (one["gradient"] == (1.0 if rank % 2 == 0 else 2.0)).all()
        half = torch.arange(24.0).view(8, 3)[:4] if rank % 2 == 0 else torch.arange(24.0).view(8, 3)[4:]
        assert torch.equal(one["part"], half)
        assert torch.equal(one["whole"], torch.arange(24.0).view(8, 3))
        norm = (12 * 1 + 12 * 4 + 3 * 4) ** 0.5
        torch.testing.assert_close(one["clipped"][0], torch.full((4, 3), (1.0 + rank % 2) / norm))
        torch.testing.assert_close(one["clipped"][1], torch.full((3,), 2.0 / norm))
        assert [step for step, stop in enumerate(one["stops"], 1) if stop] == [16, 32]


def test_one_process_is_alone_and_asks_for_no_other(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(distributed.join(), Alone)
    with pytest.raises(ConfigError, match=r"latent_shares=2 needs as many processes.*torchrun --nproc-per-node 2"):
        distributed.join(latent_shares=2)
    with pytest.raises(ConfigError, match="processes=0"):
        distributed.launch(print, processes=0)
