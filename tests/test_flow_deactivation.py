"""Deactivation in a linear residual model, where a predecessor's share of a latent is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from flow_planted import flow_of, plain_dictionary, store_of
from linear_toy import HALF, WIDTH, LinearResidual, linear_lm, rotated, token_ids

import nb_sae as ns
from nb_sae.errors import ConfigError, HookError
from nb_sae.flow.effects import deactivation
from nb_sae.flow.effects.deactivation import Deactivation, deactivate
from nb_sae.flow.effects.scaling import scaling
from nb_sae.flow.schema import DEACTIVATION
from nb_sae.statistics import one_among_p

SITES = ("layers.0", "layers.1")


def world(basis: torch.Tensor | None = None, **about):
    """Latent j of the second site comes from j (translated) or, from 12 on, from j − 12 (written by W)."""
    # Along no axis, what is not there is no exact 0.
    threshold = None if basis is None else 1e-3
    basis = torch.eye(WIDTH) if basis is None else basis
    dictionaries = {site: plain_dictionary(basis, site, threshold=threshold) for site in SITES}
    before = [[j % HALF, (j + 5) % HALF + HALF] for j in range(WIDTH)]
    flow = flow_of(dict.fromkeys(SITES, WIDTH), {"layers.1": {"residual": ("layers.0", before)}})
    return flow, dictionaries, linear_lm(basis, **about)


def run(flow, dictionaries, model, **given):
    given = {"site": "layers.1", "progress": False, "controls": 0, "loss": False, **given}
    return deactivate(flow, dictionaries, model, token_ids(), **given)


def test_a_latent_without_its_only_predecessor_is_gone_exactly():
    done = run(*world(), latents=range(WIDTH), controls=2)
    assert done.frame.schema == DEACTIVATION
    own = done.frame.filter(pl.col("how") == "top1")
    assert own["latent"].to_list() == list(range(WIDTH))
    assert own["change"].to_list() == [1.0] * WIDTH
    assert own["success"].to_list() == [1.0] * WIDTH
    assert own["source_latent"].to_list() == [j % HALF for j in range(WIDTH)]
    controls = done.frame.filter(pl.col("how") == "control")
    assert controls.height == 2 * WIDTH
    assert controls["change"].to_list() == [0.0] * controls.height, "what is unrelated changes nothing"
    assert controls["success"].max() == 0


def test_features_along_no_axis_show_the_same_within_rounding():
    done = run(*world(rotated()), latents=range(WIDTH), controls=2)
    own, controls = (done.frame.filter(pl.col("how") == how) for how in ("top1", "control"))
    assert float((own["change"] - 1).abs().max()) < 1e-4
    assert own["success"].to_list() == [1.0] * WIDTH
    assert float(controls["change"].abs().max()) < 0.02


def test_rows_are_those_on_which_both_are_active():
    flow, dictionaries, model = world()
    given = token_ids()
    rows = model.capture_rows(given, list(SITES))
    before, after = (dictionaries[site].encode(rows[site].flatten(0, 1)) > 0 for site in SITES)
    frame = deactivate(flow, dictionaries, model, given, site="layers.1", progress=False, batch=5).frame
    for line in frame.iter_rows(named=True):
        assert line["rows"] == int((before[:, line["source_latent"]] & after[:, line["latent"]]).sum())


def test_factor_one_is_the_identity_bit_for_bit():
    for basis in (torch.eye(WIDTH), rotated()):
        done = run(*world(basis), latents=range(WIDTH), factor=1.0, loss=True, controls=1)
        assert set(done.frame["change"].to_list()) == {0.0}
        assert set(done.frame["loss"].to_list()) == {0.0}
        _, dictionaries, model = world(basis)
        given = token_ids()
        x = model.capture_rows(given, ["layers.0"])["layers.0"]
        acts = dictionaries["layers.0"].encode(x.flatten(0, 1))[:, [2, 3]]
        edit = scaling(dictionaries["layers.0"], "layers.0", x, acts, [2, 3], 1.0)
        clean = model.logits(given)
        with ns.intervene(model, edit):
            assert torch.equal(model.logits(given).view(torch.int32), clean.view(torch.int32))


@pytest.mark.parametrize(("factor", "change"), [(0.5, 0.5), (2.0, -1.0), (-1.0, 1.0)])
def test_other_factors_scale_what_the_predecessor_writes(factor, change):
    """z is linear in the factor until it is off; below 0 there is nothing."""
    frame = run(*world(), latents=[3, HALF + 3], factor=factor).frame
    assert frame["change"].to_list() == pytest.approx([change] * 2, abs=1e-6)
    assert frame["success"].to_list() == [float(factor < 0)] * 2


def test_five_predecessors_together_account_for_what_each_does_a_part_of():
    basis = torch.eye(WIDTH)
    dictionaries = {site: plain_dictionary(basis, site) for site in SITES}
    model = linear_lm()
    block = model.module.layers[1].W
    with torch.no_grad():
        block.zero_()
        block[:5, 20] = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1])
        model.module.embed.weight[:] = 0
        model.module.embed.weight[:, :5] = 1.0  # every token has the five features alike
    ranked = [[j] for j in range(WIDTH)]
    ranked[20] = [0, 1, 2, 3, 4]
    flow = flow_of(dict.fromkeys(SITES, WIDTH), {"layers.1": {"residual": ("layers.0", ranked)}})
    frame = run(flow, dictionaries, model, latents=[20], how=("top1", "top5", "random5")).frame
    found = {line["how"]: line for line in frame.iter_rows(named=True)}
    assert found["top1"]["change"] == pytest.approx(0.5 / 1.5, abs=1e-6)
    assert found["top5"]["change"] == pytest.approx(1.0, abs=1e-6)
    share = [0.5, 0.4, 0.3, 0.2, 0.1][found["random5"]["source_latent"]] / 1.5
    assert found["random5"]["change"] == pytest.approx(share, abs=1e-6)
    drawn = {
        run(flow, dictionaries, model, latents=[20], how="random5", seed=seed).frame["source_latent"][0]
        for seed in range(12)
    }
    assert len(drawn) > 2
    with pytest.raises(ConfigError, match="keeps 1 of latent 7"):
        run(flow, dictionaries, model, latents=[7], how="top5")


def test_predecessors_are_compared_with_the_controls_of_the_same_latent():
    line = run(*world(), latents=range(WIDTH), controls=2).against_control().row(0, named=True)
    assert (line["how"], line["latents"], line["change"], line["control"]) == ("top1", WIDTH, 1.0, 0.0)
    assert line["p"] == pytest.approx(2 / 3**WIDTH)
    shown = repr(run(*world(), latents=[2, 3], controls=1))
    assert shown == "Deactivation('layers.1', 2 latents; change top1 r=0: +1.00, control r=0: +0.00)"


def test_five_at_once_are_compared_with_five_others_at_once(monkeypatch):
    """Five of anything change more than one: single controls would make every top-5 look like a find."""
    _, dictionaries, model = world()
    ranked = [[(j + step) % HALF for step in range(5)] for j in range(WIDTH)]
    flow = flow_of(dict.fromkeys(SITES, WIDTH), {"layers.1": {"residual": ("layers.0", ranked)}})
    seen = set()
    real = deactivation.scaling

    def noted(dictionary, site, x, acts, latents, factor):
        seen.add(tuple(sorted(latents)))
        return real(dictionary, site, x, acts, latents, factor)

    monkeypatch.setattr(deactivation, "scaling", noted)
    done = run(flow, dictionaries, model, latents=[HALF + 4], how=["top1", "top5", "random5"], controls=1)
    assert set(done.frame["how"]) == {"top1", "top5", "random5", "control", "control of top5", "control of random5"}
    five = [one for one in seen if len(one) == 5]
    assert (4, 5, 6, 7, 8) in five
    (others,) = (set(one) for one in five if one != (4, 5, 6, 7, 8))
    assert not others & {4, 5, 6, 7, 8}
    lines = {line["how"]: line for line in done.against_control().iter_rows(named=True)}
    assert set(lines) == {"top1", "top5", "random5"}
    assert (lines["top5"]["change"], lines["top5"]["control"]) == (1.0, 0.0)


def test_predecessors_that_are_like_their_controls_are_seldom_found_different():
    """Changes lie below 1, sometimes far below: against the mean of three controls a sign test finds 12 % at 0.05."""
    random, wrong, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        change = 1 - np.exp(random.normal(size=(20, 4)))
        lines = [
            ("b", latent, "a", place, "control" if place else "top1", 0.0, 5, change[latent, place], 0.0, None)
            for latent in range(20)
            for place in range(4)
        ]
        about = {"site": "b", "latents": list(range(20))}
        found = Deactivation(pl.DataFrame(lines, schema=DEACTIVATION, orient="row"), about).against_control()
        wrong += found["p"][0] <= 0.05
    assert wrong / runs < 0.08


def test_the_rank_of_one_among_several_has_exact_chances():
    assert one_among_p(np.array([3.0]), np.array([3])) == pytest.approx(2 / 4)
    assert one_among_p(np.array([1.5]), np.array([3])) == 1
    assert one_among_p(np.zeros(0), np.zeros(0)) == 1
    ranks = np.array([(a, b, c) for a in range(4) for b in range(3) for c in range(2)])
    sums = np.abs((2 * ranks - [3, 2, 1]).sum(1))
    for rank, own in zip(ranks, sums, strict=True):
        assert one_among_p(rank, np.array([3, 2, 1])) == pytest.approx((sums >= own).mean())
    from scipy.stats import binomtest

    for above, below in ((5, 0), (3, 3), (4, 9), (20, 2)):
        one = np.array([1.0] * above + [0.0] * below)
        assert one_among_p(one, np.ones_like(one)) == pytest.approx(binomtest(above, above + below).pvalue)


def test_factor_one_keeps_every_bit_of_a_half_precision_model():
    flow, dictionaries, _ = world(rotated())
    model = ns.load_lm(LinearResidual(rotated()), dtype="bf16", context_tokens=16)
    frame = run(flow, dictionaries, model, latents=range(WIDTH), factor=1.0, loss=True, controls=1).frame
    assert set(frame["change"].drop_nulls().to_list()) == {0.0}
    assert set(frame["loss"].to_list()) == {0.0}
    gone = run(flow, dictionaries, model, latents=[3]).frame
    assert gone["change"][0] == pytest.approx(1, abs=0.02)


def test_loss_is_that_of_the_model_with_the_edit():
    flow, dictionaries, model = world()
    given = token_ids()
    frame = run(flow, dictionaries, model, latents=[4], loss=True).frame
    clean = model.next_token_loss(given)
    with ns.intervene(model, dictionaries["layers.0"].ablate(4)):
        ablated = model.next_token_loss(given)
    assert frame["loss"][0] == pytest.approx((ablated - clean) / clean, rel=1e-4)
    assert run(flow, dictionaries, model, latents=[4], loss=True).about["loss"] == pytest.approx(clean, rel=1e-6)
    assert run(flow, dictionaries, model, latents=[4]).frame["loss"][0] is None


def test_the_answer_does_not_depend_on_the_batch():
    flow, dictionaries, model = world(rotated())
    whole = run(flow, dictionaries, model, latents=[1, 14], controls=2, loss=True, batch=12).frame
    cut = run(flow, dictionaries, model, latents=[1, 14], controls=2, loss=True, batch=5).frame
    assert whole["source_latent"].equals(cut["source_latent"])
    assert whole["rows"].equals(cut["rows"])
    for column in ("change", "loss"):
        assert float((whole[column] - cut[column]).abs().max()) < 1e-5


def test_a_latent_that_is_never_active_has_no_numbers():
    flow, dictionaries, model = world()
    with torch.no_grad():
        model.module.embed.weight[:, 6] = 0
    line = run(flow, dictionaries, model, latents=[6], controls=2).frame.row(0, named=True)
    assert (line["rows"], line["change"], line["success"]) == (0, None, None)
    summary = run(flow, dictionaries, model, latents=[5, 6], controls=2).summary()
    assert dict(summary.select("how", "latents").iter_rows()) == {"top1": 1, "control": 1}


def test_latents_that_are_not_named_are_drawn_among_those_that_are_active():
    flow, dictionaries, model = world()
    with torch.no_grad():
        model.module.embed.weight[:, 6] = 0
    done = run(flow, dictionaries, model)
    assert len(done.about["latents"]) == 20
    assert not {6, HALF + 6} & set(done.about["latents"])
    assert (done.frame["rows"] > 0).all()


def test_texts_count_without_padding_and_special_tokens():
    class Letters:
        all_special_ids = (0,)

        def __call__(self, text, add_special_tokens=True, **_):
            ids = [1 + ord(letter) % 38 for letter in text]
            return {"input_ids": [0, *ids] if add_special_tokens else ids}

    flow, dictionaries, _ = world()
    model = ns.load_lm(LinearResidual(torch.eye(WIDTH)), tokenizer=Letters(), context_tokens=8)
    texts = ns.texts(["abcdefghijkl", "mnop"])
    given = {"site": "layers.1", "latents": [2], "progress": False}
    assert deactivate(flow, dictionaries, model, texts, **given).about["rows"] == 16
    assert deactivate(flow, dictionaries, model, texts, special_tokens=True, **given).about["rows"] == 16 + 3
    assert deactivate(flow, dictionaries, model, texts, **given).about["contexts"] == 3


def test_wrong_questions_are_answered_with_what_to_ask():
    flow, dictionaries, model = world()
    for given, message in (
        ({"site": "layers.0"}, "Nothing lies before 'layers.0'"),
        ({"site": "layer.1"}, r"Closest: layers\.1"),
        ({"lanes": "mlp"}, "is matched with residual"),
        ({"how": "best"}, "choose from top1"),
        ({"how": "permutation"}, "rule='permutation'"),
        ({"factor": float("nan")}, "finite"),
        ({"latents": [99]}, "no latent 99"),
        ({"latents": []}, "latents is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(flow, dictionaries, model, **given)
    with pytest.raises(ConfigError, match=r"no dictionary for 'layers\.0'"):
        run(flow, {"layers.1": dictionaries["layers.1"]}, model)
    flow.about["rule"] = "permutation"
    assert run(flow, dictionaries, model, latents=[2], how="permutation").frame["change"].to_list() == [1.0]


def test_a_model_of_another_revision_is_refused():
    flow, dictionaries, model = world()
    dictionaries["layers.0"].revision = "another"
    with pytest.raises(ConfigError, match="trained on revision 'another'"):
        run(flow, dictionaries, model)


def test_a_site_that_the_model_lacks_is_named():
    _, _, model = world()
    sites = ("layers.0", "layers.7")
    dictionaries = {site: plain_dictionary(torch.eye(WIDTH), site) for site in sites}
    flow = flow_of(dict.fromkeys(sites, WIDTH), {"layers.7": {"residual": ("layers.0", [[j] for j in range(WIDTH)])}})
    with pytest.raises(HookError, match="layers"):
        deactivate(flow, dictionaries, model, token_ids(), site="layers.7", progress=False)


def test_an_encoder_has_activations_but_no_loss():
    flow, dictionaries, model = world(sees_all=True)
    with pytest.raises(ConfigError, match="encoder"):
        run(flow, dictionaries, model, loss=True)
    done = run(flow, dictionaries, model, latents=[3], loss=None)
    assert done.about["loss"] is None
    assert done.frame["change"].to_list() == [1.0]


def test_a_real_flow_through_the_linear_model():
    """Equal directions match: what is carried on has its predecessor, what W writes comes from nowhere."""
    basis = rotated()
    dictionaries = {site: plain_dictionary(basis, site, threshold=1e-3) for site in SITES}
    model = linear_lm(basis)
    kinds = {site: ("residual", layer) for layer, site in enumerate(SITES)}
    flow = ns.feature_flow(dictionaries, kinds=kinds, draws=1_000, progress=False)
    rows = model.capture_rows(token_ids(), list(SITES))
    stores = {site: store_of(rows[site].flatten(0, 1), site) for site in SITES}
    groups = ns.activation_groups(flow, dictionaries, stores, progress=False).frame
    shares = {(line["latent"], line["group"]): line["share"] for line in groups.iter_rows(named=True)}
    assert all(shares[j, "residual" if j < HALF else "nowhere"] == 1.0 for j in range(WIDTH))
    frame = deactivate(flow, dictionaries, model, token_ids(), site="layers.1", progress=False, controls=0).frame
    assert sorted(frame["latent"].to_list()) == list(range(HALF)), "the others are never active with a match"
    assert float((frame["change"] - 1).abs().max()) < 1e-4


def test_each_route_is_switched_off_on_its_own():
    _, dictionaries, model = world()
    ranked = [[j % HALF] for j in range(WIDTH)]
    both = flow_of(
        {"layers.0": WIDTH, "embed": WIDTH, "layers.1": WIDTH},
        {"layers.1": {"residual": ("layers.0", ranked), "mlp": ("embed", ranked)}},
    )
    dictionaries["embed"] = plain_dictionary(torch.eye(WIDTH), "embed")
    frame = run(both, dictionaries, model, latents=[3]).frame
    assert frame["source_site"].to_list() == ["layers.0", "embed"]
    assert frame["change"].to_list() == [1.0, 1.0]
    assert run(both, dictionaries, model, latents=[3], lanes="mlp").frame["source_site"].to_list() == ["embed"]


def test_an_embedding_depends_on_a_latent_of_any_token():
    """CLIP: a latent of patches is switched off at every token, and the image embedding is read again."""
    clip, faces = ns.load_clip("demo"), ns.demo_faces(4, seed=2)
    sites = ("visual.transformer.resblocks.3", "image_embed")
    rows = {
        site: clip.capture_rows(torch.cat([clip.preprocessor("image")(x).tensor for x in faces]), [site], "image")[site]
        for site in sites
    }
    directions = [
        torch.nn.functional.normalize(one.reshape(-1, one.shape[-1]).mean(0), dim=0)[None] for one in rows.values()
    ]
    dictionaries = {site: plain_dictionary(one, site) for site, one in zip(sites, directions, strict=True)}
    flow = flow_of(
        dict.fromkeys(sites, 1), {"image_embed": {"residual": (sites[0], [[0]])}}, lanes={"image_embed": "embedding"}
    )
    line = deactivate(
        flow, dictionaries, clip, faces, site="image_embed", latents=[0], progress=False, batch=3
    ).frame.row(0, named=True)
    with ns.intervene(clip, dictionaries[sites[0]].ablate(0)):
        moved = clip.encode_image(faces)
    old, new = (dictionaries["image_embed"].encode(one)[:, 0] for one in (rows["image_embed"], moved))
    assert line["rows"] == 4
    assert line["change"] == pytest.approx(float((1 - new / old).mean()), abs=1e-4)
    assert line["loss"] is None


def test_what_is_no_flow_model_dictionary_or_number_is_refused_by_name():
    flow, dictionaries, model = world()
    fewer = {**dictionaries, "layers.0": plain_dictionary(torch.eye(WIDTH)[:4], "layers.0")}
    for given, message in (
        ({"dictionaries": fewer}, "has 4 latents of width 24, that of the flow 24"),
        ({"dictionaries": {**dictionaries, "layers.0": None}}, "holds a NoneType; expected a Dictionary"),
        ({"dictionaries": None}, "expected the dictionaries as"),
        ({"dictionaries": {**dictionaries, "layers.0": dictionaries["layers.1"]}}, "holds the dictionary of"),
        ({"flow": flow.edges}, "Got a DataFrame as the flow"),
        ({"model": "demo"}, "Got a str as the model"),
        ({"latents": 99}, "no latent 99"),
        ({"factor": "a"}, "expected a finite number"),
        ({"factor": None}, "expected a finite number"),
        ({"how": None}, "choose from top1"),
        ({"lanes": 3}, "is matched with residual"),
        ({"controls": 1.5}, "controls=1.5: expected a whole number"),
        ({"batch": 0}, "batch=0: expected a whole number, 1 or more"),
        ({"seed": -1}, "seed=-1"),
        ({"site": None}, "The flow has no site None"),
    ):
        asked = {"flow": flow, "dictionaries": dictionaries, "model": model, **given}
        with pytest.raises(ConfigError, match=message):
            run(asked.pop("flow"), asked.pop("dictionaries"), asked.pop("model"), **asked)
