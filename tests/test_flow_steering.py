"""Steering along chains: schedules by their formulas, edits by what a linear model must answer, effects by controls."""

from __future__ import annotations

import math
from itertools import pairwise

import polars as pl
import pytest
import torch
from flow_planted import flow_of, plain_dictionary
from linear_toy import HALF, WIDTH, linear_lm, rotated, token_ids

import nb_sae as ns
from nb_sae.errors import ConfigError, HookError, InputError
from nb_sae.flow.effects.chain_effect import chain_effect
from nb_sae.flow.effects.chain_steering import chain_steps, steer_chain, strength_at
from nb_sae.flow.schema import CHAIN_EFFECT, GENERATIONS

SITES = ("layers.0", "layers.1")


def world(basis: torch.Tensor | None = None):
    basis = torch.eye(WIDTH) if basis is None else basis
    dictionaries = {site: plain_dictionary(basis, site, threshold=1e-3) for site in SITES}
    before = [[j % HALF] for j in range(WIDTH)]
    flow = flow_of(dict.fromkeys(SITES, WIDTH), {"layers.1": {"residual": ("layers.0", before)}})
    return flow, dictionaries, linear_lm(basis)


def deep_chain(layers: int = 6):
    """One latent per layer that goes through all of them; latent 1 of each layer has nothing before it."""
    sites = [f"layers.{layer}" for layer in range(layers)]
    matches = {after: {"residual": (before, [[0], []])} for before, after in pairwise(sites)}
    return flow_of(dict.fromkeys(sites, 2), matches), {site: plain_dictionary(torch.eye(2), site) for site in sites}


def strengths(flow, dictionaries, site, latent, what, value, **given):
    given = {"mode": "cumulative", "schedule": "constant", "rate": -0.05, "last": 1.0, "lanes": ("residual",), **given}
    return [
        (step.site, step.latent, step.strength)
        for step in chain_steps(flow, dictionaries, site, latent, what, value, **given)
    ]


def test_schedules_follow_their_formulas():
    flow, dictionaries = deep_chain()
    sites = [f"layers.{layer}" for layer in range(5)]
    for schedule, expected in (
        ("constant", [8.0] * 5),
        ("exponential", [8 * math.exp(-0.05 * layer) for layer in range(5)]),
        ("linear", [8.0, 6.25, 4.5, 2.75, 1.0]),
    ):
        found = strengths(flow, dictionaries, "layers.4", 0, "add", 8.0, schedule=schedule)
        assert [site for site, _, _ in found] == sites
        assert [value for _, _, value in found] == pytest.approx(expected)
    faster = strengths(flow, dictionaries, "layers.4", 0, "add", 8.0, schedule="exponential", rate=-1.0)
    assert faster[3][2] == pytest.approx(8 * math.exp(-3))


def test_a_factor_is_scheduled_about_one():
    """A factor of 1 changes nothing, so it must stay 1 at every layer whatever the schedule."""
    for schedule in ("constant", "exponential", "linear"):
        assert strength_at("scale", 1.0, schedule, 7, 0, 9, rate=-0.05, last=1.0) == 1.0
    assert strength_at("scale", 3.0, "exponential", 4, 0, 9, rate=-0.05, last=1.0) == 1 + 2 * math.exp(-0.2)
    assert strength_at("scale", 3.0, "linear", 9, 0, 9, rate=-0.05, last=1.0) == 1.0


def test_single_is_the_latent_alone_and_cumulative_ends_where_it_was_born():
    flow, dictionaries = deep_chain()
    assert strengths(flow, dictionaries, "layers.4", 0, "add", 2.0, mode="single") == [("layers.4", 0, 2.0)]
    exponential = strengths(flow, dictionaries, "layers.4", 0, "add", 2.0, mode="single", schedule="exponential")
    assert exponential == [("layers.4", 0, pytest.approx(2 * math.exp(-0.2)))]
    linear = strengths(flow, dictionaries, "layers.4", 0, "add", 2.0, mode="single", schedule="linear")
    assert linear == [("layers.4", 0, 2.0)], "it begins where it ends"
    assert strengths(flow, dictionaries, "layers.4", 1, "add", 2.0) == [("layers.4", 1, 2.0)]


def test_the_chain_ends_where_it_leaves_the_lane():
    sizes = {"layers.0": 1, "layers.1.mlp": 1, "layers.1": 1}
    flow = flow_of(
        sizes,
        {"layers.1": {"residual": ("layers.1.mlp", [[0]])}, "layers.1.mlp": {"residual": ("layers.0", [[0]])}},
        lanes={"layers.1.mlp": "mlp"},
    )
    dictionaries = {site: plain_dictionary(torch.eye(1), site) for site in sizes}
    assert [one[0] for one in strengths(flow, dictionaries, "layers.1", 0, "add", 1.0)] == ["layers.1"]
    through = strengths(flow, dictionaries, "layers.1", 0, "add", 1.0, lanes=("residual", "mlp"))
    assert [one[0] for one in through] == list(sizes)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "linear"])
def test_edits_move_a_linear_readout_by_the_sum_that_is_predicted(schedule):
    basis = rotated()
    flow, dictionaries, model = world(basis)
    given = token_ids()
    edits = steer_chain(
        flow, dictionaries, "layers.1", HALF + 4, add=2.5, mode="cumulative", schedule=schedule
    )  # fmt: skip
    s0, s1 = (
        value for _, _, value in strengths(flow, dictionaries, "layers.1", HALF + 4, "add", 2.5, schedule=schedule)
    )
    block, head = model.module.layers[1].W, model.module.head.weight
    predicted = ((s0 * basis[4]) @ (torch.eye(WIDTH) + block) + s1 * basis[HALF + 4]) @ head.T
    clean = model.logits(given)
    with ns.intervene(model, edits):
        moved = model.logits(given) - clean
    assert float((moved - predicted).detach().abs().max()) < 1e-4
    assert [edit.site for edit in edits] == list(SITES)


def test_p99_counts_in_the_scale_of_each_site():
    flow, dictionaries = deep_chain(2)
    generator = torch.Generator().manual_seed(0)
    stores = {
        site: ns.ActivationStore.from_tensor(scale * torch.rand(500, 2, generator=generator), site=site)
        for site, scale in zip(dictionaries, (1.0, 10.0), strict=True)
    }
    analyses = {site: ns.analyze(dictionaries[site], stores[site], progress=False) for site in dictionaries}
    edits = steer_chain(
        flow, dictionaries, "layers.1", 0, add=2.0, mode="cumulative", unit="p99", analyses=analyses
    )  # fmt: skip
    steps = [float(edit.apply(torch.zeros(1, 2))[0, 0]) for edit in edits]
    assert steps[0] == pytest.approx(2.0, rel=0.05)
    assert steps[1] == pytest.approx(20.0, rel=0.05)


def test_wrong_requests_say_what_to_give():
    flow, dictionaries = deep_chain()
    for given, message in (
        ({}, "Give one of add="),
        ({"add": 1.0, "scale": 2.0}, "Give one of add="),
        ({"add": math.inf}, "finite"),
        ({"add": 1.0, "mode": "all"}, "single, cumulative"),
        ({"add": 1.0, "schedule": "cosine"}, "constant, exponential, linear"),
        ({"add": 1.0, "unit": "p99"}, "give analysis="),
        ({"add": "2"}, "Give one of add="),
        ({"add": 1.0, "lanes": ["stream"]}, "choose from residual, mlp, attention"),
    ):
        with pytest.raises(ConfigError, match=message):
            steer_chain(flow, dictionaries, "layers.4", 0, **given)
    with pytest.raises(ConfigError, match=r"Closest: layers\."):
        steer_chain(flow, dictionaries, "layers.9", 0, add=1.0)
    with pytest.raises(ConfigError, match="no latent 5"):
        steer_chain(flow, dictionaries, "layers.4", 5, add=1.0)
    del dictionaries["layers.2"]
    with pytest.raises(ConfigError, match=r"no dictionary for 'layers\.2'"):
        steer_chain(flow, dictionaries, "layers.4", 0, add=1.0, mode="cumulative")


TARGET = 7


def toward_target(basis: torch.Tensor):
    """The head says token 7 along feature 16 alone, which W writes from feature 4; nothing else says it."""
    flow, dictionaries, model = world(basis)
    with torch.no_grad():
        model.module.head.weight[TARGET] = 3 * basis[HALF + 4]
    return flow, dictionaries, model


def test_a_chain_moves_its_token_and_control_chains_do_not():
    flow, dictionaries, model = toward_target(rotated())
    given = token_ids()
    ask = {"site": "layers.1", "latent": HALF + 4, "add": 3.0, "toward": [TARGET], "controls": 19, "batch": 5}
    found = chain_effect(flow, dictionaries, model, given, **ask)
    assert found.frame.schema == CHAIN_EFFECT
    chain, controls = (found.frame.filter(pl.col("kind") == kind) for kind in ("chain", "control"))
    clean = model.logits(given).detach().log_softmax(-1)[..., TARGET]
    with ns.intervene(model, steer_chain(flow, dictionaries, "layers.1", HALF + 4, add=3.0, mode="cumulative")):
        moved = model.logits(given).detach().log_softmax(-1)[..., TARGET]
    assert chain["before"][0] == pytest.approx(float(clean.mean()), abs=1e-5)
    assert chain["effect"][0] == pytest.approx(float((moved - clean).mean()), abs=1e-5)
    assert chain["effect"][0] > 4
    assert float(controls["effect"].max()) < 1
    assert found.about["p"] == 1 / 20
    assert HALF + 4 not in controls["latent"].to_list()
    assert len(set(controls["latent"].to_list())) == 19
    assert found.generations is None, "token ids are no prompts to continue"


def test_a_latent_that_is_turned_off_is_read_downwards():
    """`set=0` and `scale=0` take away the same, and what they should do is lower the token."""
    flow, dictionaries, model = toward_target(rotated())
    ask = {"site": "layers.1", "latent": HALF + 4, "toward": [TARGET], "controls": 19, "mode": "single"}
    for change in ({"set": 0.0}, {"scale": 0.0}):
        found = chain_effect(flow, dictionaries, model, token_ids(), **ask, **change).about
        assert found["effect"] < 0, change
        assert found["p"] == 1 / 20, change


def test_a_token_that_the_chain_has_nothing_to_do_with_is_moved_as_by_chance():
    flow, dictionaries, model = toward_target(rotated())
    ps = []
    for token in range(20):
        ask = {"site": "layers.1", "latent": token % HALF + HALF, "toward": [(token + TARGET + 1) % 40], "seed": token}
        ps.append(chain_effect(flow, dictionaries, model, token_ids(4, 5), add=1.0, controls=9, **ask).about["p"])
    assert sum(p <= 0.1 for p in ps) <= 6, "one in ten by chance; 7 of 20 would happen in 0.2 % of the cases"
    assert 0.25 < sum(ps) / len(ps) < 0.85


@pytest.mark.parametrize("change", [{"add": 2.0}, {"scale": 3.0}, {"set": 1.5}])
def test_controls_are_pushed_as_far_as_the_chain_at_every_token(change):
    """Of a model with an orthonormal basis the length of each row's step is that of the latent's own change."""
    from nb_sae.flow.effects.chain_effect import _pushes

    flow, dictionaries, model = world(rotated())
    x = model.capture_rows(token_ids(), ["layers.0"])["layers.0"]
    ((what, value),) = change.items()
    steps = chain_steps(
        flow, dictionaries, "layers.0", 4, what, value, mode="single", schedule="constant", rate=0, last=1, lanes=()
    )
    (push,) = _pushes(dictionaries, steps, [9], what, unit="activation", analyses=None)
    (own,) = steer_chain(flow, dictionaries, "layers.0", 4, **change)
    lengths = [(edit.apply(x.clone()) - x).norm(dim=-1) for edit in (own, push)]
    assert float((lengths[0] - lengths[1]).abs().max()) < 1e-5
    assert float(lengths[0].max()) > 0.5
    step = push.apply(x.clone()) - x
    assert ((step @ rotated().T).abs() > 1e-4).flatten(0, 1).any(0).nonzero().tolist() == [[9]]


def test_no_push_has_no_effect_and_no_cost():
    flow, dictionaries, model = toward_target(torch.eye(WIDTH))
    for change in ({"add": 0.0}, {"scale": 1.0}):
        ask = {"site": "layers.1", "latent": HALF + 4, "toward": [TARGET], "controls": 3, **change}
        found = chain_effect(flow, dictionaries, model, token_ids(), **ask)
        assert found.frame["effect"].to_list() == [0.0] * 4
        assert float(found.frame["cost"].abs().max()) < 1e-6
        assert found.about["p"] == 1.0


def test_a_language_model_writes_before_and_after_side_by_side():
    lm = ns.load_lm("demo")
    site = "gpt_neox.layers.3"
    width = lm.site(site).width
    head = lm.module.get_output_embeddings().weight.detach()
    token = lm.tokenizer(" return", add_special_tokens=False)["input_ids"][0]
    rows = torch.nn.functional.normalize(torch.randn(6, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    rows[0] = torch.nn.functional.normalize(head[token] - head.mean(0), dim=0)
    dictionaries = {site: plain_dictionary(rows, site, model=lm.name, revision=lm.revision)}
    flow = flow_of({site: 6}, {})
    ask = {"site": site, "latent": 0, "add": 60.0, "controls": 5, "tokens": 6, "write": 2}
    prompts = ["The function", "A list of", "Return the"]
    found = chain_effect(flow, dictionaries, lm, prompts, toward=" return", **ask)
    assert found.generations.schema == GENERATIONS
    assert found.generations["prompt"].to_list() == prompts[:2]
    for line in found.generations.iter_rows(named=True):
        assert line["before"] == lm.generate(line["prompt"], tokens=6)
        assert line["after"].count("return") > line["before"].count("return")
        assert line["control"].count("return") < line["after"].count("return")
    assert found.about["effect"] > 1
    assert found.about["toward"] == [" return"]
    promoted = chain_effect(flow, dictionaries, lm, prompts, **{**ask, "write": 0})
    assert any("return" in one.lower() for one in promoted.about["toward"])
    assert promoted.generations is None


def test_pictures_are_moved_toward_a_text():
    clip, faces = ns.load_clip("demo"), ns.demo_faces(6, seed=1)
    text = clip.encode_text(["a person with eyeglasses"], normalize=True)[0]
    rows = torch.nn.functional.normalize(torch.randn(12, len(text), generator=torch.Generator().manual_seed(0)), dim=-1)
    rows[3] = text
    site = "image_embed"
    dictionaries = {site: plain_dictionary(rows, site)}
    found = chain_effect(
        flow_of({site: 12}, {}, lanes={site: "embedding"}), dictionaries, clip, faces, site=site, latent=3, add=2.0,
        toward="a person with eyeglasses", controls=9,
    )  # fmt: skip
    assert found.about["measure"] == "cosine"
    assert found.about["p"] == 0.1
    clean = clip.encode_image(faces)
    cosines = [torch.nn.functional.normalize(x, dim=-1) @ text for x in (clean, clean + 2 * text)]
    assert found.about["effect"] == pytest.approx(float((cosines[1] - cosines[0]).mean()), abs=1e-5)
    line = found.frame.row(0, named=True)
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (clean, clean + 2 * text)]
    assert line["cost"] == pytest.approx(float(1 - (unit[0] * unit[1]).sum(-1).mean()), abs=1e-5)
    with pytest.raises(ConfigError, match="give one text"):
        chain_effect(flow_of({site: 12}, {}), dictionaries, clip, faces, site=site, latent=3, add=2.0)


def test_questions_that_the_model_cannot_answer_are_refused():
    flow, dictionaries, model = toward_target(torch.eye(WIDTH))
    ask = {"site": "layers.1", "latent": 3, "add": 1.0, "toward": [TARGET], "controls": 2}
    with pytest.raises(ConfigError, match="encoder"):
        chain_effect(flow, dictionaries, linear_lm(sees_all=True), token_ids(), **ask)
    with pytest.raises(ConfigError, match="its id 0 … 39"):
        chain_effect(flow, dictionaries, model, token_ids(), **{**ask, "toward": [40]})
    with pytest.raises(ConfigError, match="without a tokenizer"):
        chain_effect(flow, dictionaries, model, token_ids(), **{**ask, "toward": ["a"]})
    with pytest.raises(ConfigError, match="controls=24"):
        chain_effect(flow, dictionaries, model, token_ids(), **{**ask, "controls": 24})
    with pytest.raises(InputError, match="no position"):
        chain_effect(flow, dictionaries, model, torch.full((2, 4), -1), **ask)
    dictionaries["layers.0"].revision = "another"
    with pytest.raises(ConfigError, match="trained on revision 'another'"):
        chain_effect(flow, dictionaries, model, token_ids(), **ask)
    lm = ns.load_lm("demo")
    deep = flow_of({"gpt_neox.layers.9": 2}, {})
    with pytest.raises(HookError, match="Closest"):
        chain_effect(
            deep, {"gpt_neox.layers.9": plain_dictionary(torch.eye(192)[:2])}, lm, ["a text"], site="gpt_neox.layers.9",
            latent=0, add=1.0, toward=[5], controls=1,
        )  # fmt: skip
