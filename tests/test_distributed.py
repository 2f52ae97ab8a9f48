from __future__ import annotations

import signal
import sys

import pytest
import torch
from rank_workers import diverge, in_group, launched, nested_problem, planted_source, start, together, train

from nb_sae.errors import ConfigError
from nb_sae.sae import distributed
from nb_sae.sae.dead import dead_latent_loss
from nb_sae.sae.distributed import Alone
from nb_sae.sae.nested import nested_loss
from nb_sae.sae.session import Session


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


def test_a_notebook_launches_processes_that_find_each_other(tmp_path, monkeypatch):
    stop_button = signal.getsignal(signal.SIGINT)
    distributed.launch(launched, [str(tmp_path)], processes=2)
    assert signal.getsignal(signal.SIGINT) is stop_button
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["2 0.5", "2 0.5"]
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # a worker of the tests has none

    def mine():
        pass

    mine.__module__ = "__main__"
    with pytest.raises(ConfigError, match=r"mine was defined in the notebook.*import it, or launch nb_sae\.train_file"):
        distributed.launch(mine, processes=2)


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────


def same_training(found: list[dict], alone: dict) -> None:
    """Weights to 1e-8, and the log but for its clock."""
    for one in found:
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(one["weights"][name], weight, rtol=1e-6, atol=1e-7)
        planned = [line for line in one["log"] if line["step"] % 10 == 0]  # a run that ends in between adds a line
        for line, expected in zip(planned, alone["log"], strict=True):
            assert line == pytest.approx(expected, rel=1e-6)


EVERY = ["msae", "residual", "widths", "tied", "batch_topk", "batch_widths", "jump_relu", "gated", "relu"]


@pytest.mark.parametrize("kind", EVERY)
def test_two_processes_train_what_one_trains_on_the_same_batches(tmp_path, kind):
    """50 steps in float64, with dead latents, clipping, projection and averaging, to 1e-8."""
    alone = train(0, 1, kind=kind)
    found = together("train", tmp_path, kind=kind)
    same_training(found, alone)
    for name, parameter in alone["own"].items():
        torch.testing.assert_close(found[0]["own"][name], parameter, rtol=0, atol=1e-8)
        assert torch.equal(found[0]["own"][name], found[1]["own"][name]), "the processes drift apart"
    if kind == "msae":
        assert alone["log"][-1]["dead"] > 0.2, "the auxiliary loss was not tested"


@pytest.mark.parametrize("kind", ["msae", "widths", "tied"])
def test_a_split_dictionary_trains_to_that_of_one_process(tmp_path, kind):
    alone = train(0, 1, kind=kind)
    found = together("train", tmp_path, kind=kind, latent_shares=2)
    same_training(found, alone)
    for name, parameter in alone["own"].items():
        parts = [one["own"][name] for one in found]
        if name in ("b_dec", "log_level_scale"):
            torch.testing.assert_close(parts[0], parameter, rtol=0, atol=1e-8)
            assert torch.equal(parts[0], parts[1])
        else:
            whole = torch.cat(parts, 1 if name == "W_enc" else 0)
            torch.testing.assert_close(whole, parameter, rtol=0, atol=1e-8)


def test_rows_and_latents_shared_out_at_once_train_the_same(tmp_path):
    same_training(together("train", tmp_path, world=4, kind="msae", latent_shares=2), train(0, 1, kind="msae"))


@pytest.mark.parametrize("latent_shares", [1, 2])
def test_a_killed_rank_resumes_from_the_last_save_with_nothing_lost(tmp_path, latent_shares):
    """A rank is killed after 34 steps, the last save is of step 30; what comes of it is what comes without."""
    alone = train(0, 1, kind="msae")
    saved = tmp_path / "session"
    (tmp_path / "first").mkdir()
    settings = {"kind": "msae", "latent_shares": latent_shares, "saved": saved}
    killed = [start(in_group, "train", rank, 2, tmp_path / "first", die_at=34, **settings) for rank in range(2)]
    killed[1].join(100)
    assert killed[1].exitcode == -9
    killed[0].join(100)  # gloo tells the survivor at the next exchange
    assert killed[0].exitcode not in (0, None)
    assert Session.load(saved).step in (30, 34)  # 34 where the survivor ended its run before it noticed
    (tmp_path / "second").mkdir()
    found = together("train", tmp_path / "second", resume=True, **settings)
    same_training(found, alone)
    # What two processes saved, one can go on with: nothing in it depends on their number.
    assert Session.load(saved, planted_source()).finished


def test_what_cannot_be_split_is_refused_or_said_at_the_start(tmp_path):
    both = together("refusals", tmp_path)
    told = "A dictionary in 2 parts looks at a row once, not in rounds: residual=False.\n"
    assert [one["default"].startswith(told) for one in both] == [True, False], "the main process says it"
    for found in both:
        assert "sparsity='jump_relu' cannot be split" in found["jump_relu"]
        assert "sparsity='batch_top_k' cannot be split" in found["batch_topk"]
        assert "d_sae=97 cannot be split evenly" in found["odd"]
        assert "63 rows cannot be shared out evenly among 2" in found["batch"]
        assert "latent_shares=2 parts does not encode in rounds. Use SAEConfig.msae(residual=False)" in found["rounds"]
        assert found["weights"] == "uniform", "those of one look"


@pytest.mark.parametrize("latent_shares", [1, 2])
def test_processes_that_diverge_go_back_together(tmp_path, latent_shares):
    alone = diverge(0, 1)
    for found in together("diverge", tmp_path, latent_shares=latent_shares):
        assert "aside, at step 20" in found["said"]
        assert found["stood"] == 20
        same_training([found], alone)
