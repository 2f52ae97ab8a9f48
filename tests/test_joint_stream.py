"""Several sites out of one forward pass: the batches of each alone, the model run once for all."""

from __future__ import annotations

import os
import signal

import pytest
import store_fakes as fakes
import torch
from sessions import same, state

import nb_sae as ns
from nb_sae.errors import ConfigError, HookError, StoreError
from nb_sae.sae import many
from nb_sae.sae.many import train_all
from nb_sae.types import Site

PLAN = ns.TrainConfig(rows=30 * 16, batch_rows=16, dead_after_rows=200)
CONFIG = ns.SAEConfig.msae(d_sae=32, budgets=(2, 4))
SITES = ("tokens", "other")


class TwoSites(fakes.FakeModel):
    """Also "other": narrower, other rows for the same tokens."""

    def site(self, name, modality):
        return Site(name, 6, positions=5) if name == "other" else super().site(name, modality)

    def capture_rows(self, batch, sites, modality):
        found = super().capture_rows(batch, ["tokens", *sites], modality)
        return {site: found["tokens"][..., :6].square() if site == "other" else found[site] for site in sites}


def images(count=150) -> fakes.FakeInputs:
    return fakes.FakeInputs(fakes.colours(count))


OPTIONS = {"batch_inputs": 4, "dtype": "float32", "progress": False, "rows": 80}


def both(model=None, **others):
    return ns.ActivationStream.of_sites(model or TwoSites(), images(), site=SITES, **{**OPTIONS, **others})


def alone(site, model=None):
    return ns.ActivationStream(model or TwoSites(), images(), site=site, **OPTIONS)


def session(source) -> ns.Session:
    return ns.Session(source, CONFIG, PLAN, device="cpu", progress=False)


@pytest.mark.parametrize("skip", [0, 1, 7])
def test_each_site_gives_the_batches_of_its_own_stream(skip):
    parts = both()
    assert list(parts) == list(SITES)
    for site in SITES:
        own = alone(site)
        assert (parts[site].d_in, len(parts[site])) == (own.d_in, len(own))
        assert parts[site].statistics().mean.tolist() == own.statistics().mean.tolist()
        given = list(parts[site].batches(16, seed=2, skip=skip))
        assert torch.equal(torch.stack(given), torch.stack(list(own.batches(16, seed=2, skip=skip))))


def test_one_pass_of_the_model_trains_all_sites_to_the_bits_of_each_alone():
    model, once = TwoSites(), TwoSites()
    expected = {site: session(alone(site)).run(progress=False) for site in SITES}
    session(alone("tokens", once)).run(progress=False)
    trainings = train_all(both(model), CONFIG, PLAN, device="cpu", progress=False)
    assert trainings.finished
    for site in SITES:
        assert same(state(trainings[site].session), state(expected[site]))
        assert trainings.dictionaries[site].site == site
    assert len(model.calls) <= len(once.calls) + 1
    assert model.calls[-1][1] == ("tokens", *SITES)


def interrupt_at(site, step):
    def on_log(line):
        if (line["site"], line["step"]) == (site, step):
            os.kill(os.getpid(), signal.SIGINT)

    return on_log


def test_an_interrupted_run_over_shared_rows_goes_on_from_its_files(tmp_path):
    whole = train_all(both(), CONFIG, PLAN, device="cpu", progress=False)
    settings = {"device": "cpu", "progress": False, "path": tmp_path}
    stopped = train_all(both(), CONFIG, PLAN, on_log=interrupt_at("tokens", 11), **settings)
    # The batch that was under way is finished by all that share it.
    assert stopped.frame["step"].to_list() == [11, 11]
    again = train_all(both(), CONFIG, PLAN, **settings)
    for site in SITES:
        assert same(state(again[site].session), state(whole[site].session))


def test_sites_that_stand_at_other_steps_train_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("nb_sae.sae.many.TURN_SECONDS", 0.0)
    whole = train_all(both(), CONFIG, PLAN, device="cpu", progress=False)
    settings = {"device": "cpu", "progress": False, "path": tmp_path, "save_every_rows": 48}
    first = train_all(both(), CONFIG, PLAN, on_log=interrupt_at("other", 9), **settings)
    (tmp_path / "tokens" / "session.json").unlink()  # begins anew, in another place of the same pass
    assert first.stopped_early
    second = train_all(both(), CONFIG, PLAN, on_log=interrupt_at("tokens", 6), **settings)
    assert second.frame["step"].to_list() == [6, 14]
    again = train_all(both(), CONFIG, PLAN, **settings)
    for site in SITES:
        assert same(state(again[site].session), state(whole[site].session))


def test_every_pass_counts_a_whole_buffer(tmp_path, monkeypatch):
    """Two sites at one step share a buffer; at two steps each has one, and there may be room for one alone."""
    with monkeypatch.context() as patch:
        patch.setattr(many._Run, "to_the_end", lambda run, show: None)
        trainings = train_all(both(), CONFIG, PLAN, device="cpu", progress=False)
    one, other = trainings["tokens"], trainings["other"]
    buffer = one.source.joint.held_bytes(one.device)
    assert one.source.held_bytes(one.device) + other.source.held_bytes(one.device) == buffer
    trainings.memory_bytes = one.memory.total + other.memory.total + buffer
    run = many._Run(trainings, [one, other])
    assert run._fits(other, [one])
    one.open()
    assert run._fits(other, [one])
    one._step = one.session.step = 3
    assert not run._fits(other, [one])
    trainings.memory_bytes += buffer
    assert many._Run(trainings, [one, other])._fits(other, [one])
    one.close()


def test_what_cannot_be_streamed_together_is_refused():
    for model, inputs in ((None, images()), (TwoSites(), ["a"]), (TwoSites(), None)):
        with pytest.raises(ConfigError, match="expected a model from load_clip"):
            ns.ActivationStream.of_sites(model, inputs, site=["tokens"], **OPTIONS)
    with pytest.raises(ConfigError, match="batch_rows=0"):
        next(both()["other"].batches(0, seed=0))
    with pytest.raises(ConfigError, match="other numbers of rows per input"):
        ns.ActivationStream.of_sites(TwoSites(), images(), site=["tokens", "pooled"], **OPTIONS)
    with pytest.raises(ConfigError, match="at least one site, each once"):
        ns.ActivationStream.of_sites(TwoSites(), images(), site=["tokens", "tokens"], **OPTIONS)
    with pytest.raises(ConfigError, match="at least one site, each once"):
        ns.ActivationStream.of_sites(TwoSites(), images(), site=[], **OPTIONS)
    with pytest.raises(HookError, match="Closest: tokens"):
        ns.ActivationStream.of_sites(TwoSites(), images(), site=["token"], **OPTIONS)
    part = both()["other"]
    for read in (lambda: part[0], lambda: part.rows, lambda: part.chunks(4), lambda: part.chunk_spans(4)):
        with pytest.raises(StoreError, match="keeps no rows"):
            read()


def test_the_buffer_is_shared_out_among_the_sites():
    parts = both()
    assert parts["tokens"].held_bytes(torch.device("cpu")) == 80 * 8 * 4
    assert parts["other"].held_bytes(torch.device("cpu")) == 80 * 6 * 4


def test_a_small_buffer_gives_a_small_sample_to_look_at_before_training():
    """Principal axes are taken from a batch; a stream mixes at least two of them."""
    plan = ns.TrainConfig(rows=64, batch_rows=16, principal_axes=True)
    ns.Session(alone("tokens"), CONFIG, plan, device="cpu", progress=False).run(progress=False)
