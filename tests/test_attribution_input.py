"""What a user may mistype when asking about heads, lenses, attributions: an error that says what to give instead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from linear_readout import random_dictionary
from PIL import Image

import nb_sae as ns
from nb_sae import plots
from nb_sae.attribution.schema import FAITHFULNESS, HEAD_SCORES, HEAD_WEIGHTS, IDENTIFIABILITY, INDUCTION
from nb_sae.errors import ConfigError, InputError, NbSaeError, NonFiniteError, ShapeError, WidgetError

TEXT = "def mean(values): return"
STREAM, ATTENTION, IMAGE = "gpt_neox.layers.1", "gpt_neox.layers.1.attention", "visual.transformer.resblocks.1"


@pytest.fixture(scope="module")
def given() -> Any:
    clip, picture = ns.load_clip("demo"), Image.new("RGB", (64, 64), (200, 10, 10))
    return SimpleNamespace(
        lm=ns.load_lm("demo"),
        clip=clip,
        stream=random_dictionary(192, 64, STREAM),
        heads=random_dictionary(192, 64, ATTENTION),
        other=random_dictionary(192, 64, STREAM, model="another", revision="1"),
        image=random_dictionary(128, 64, IMAGE),
        picture=picture,
        metric=ns.log_prob(" the"),
        lens=ns.vision_lens(clip, [picture], ["a dog", "a cat"], progress=False),
    )


def on_ids(ids: list, dtype: torch.dtype = torch.long) -> Any:
    return lambda g: ns.attribute(g.lm, g.stream, torch.tensor([ids], dtype=dtype), g.metric)


def on_pixels(*shape: int) -> Any:
    return lambda g: ns.attribute(g.clip, g.image, torch.zeros(shape), ns.cosine_to("a dog"))


def measured(metric: Any) -> Any:
    return lambda g: ns.attribute(g.lm, g.stream, TEXT, metric)


def toward(target: Any) -> Any:
    return lambda g: ns.attribute(g.clip, g.image, g.picture, ns.cosine_to(target))


BAD: dict[str, tuple[Any, type[NbSaeError], str]] = {
    "a mapping of inputs": (
        lambda g: ns.attribute(g.lm, g.stream, {"a": TEXT}, g.metric), InputError, r"list\(inputs.values\(\)\)"
    ),
    "negative ids": (on_ids([1, -2, 3]), InputError, "Token id -2 is negative"),
    "true and false as ids": (on_ids([True, False], torch.bool), ShapeError, "torch.bool of shape .* token ids"),
    "no picture": (
        lambda g: ns.attribute(g.clip, g.image, [None], ns.cosine_to("a dog")), InputError, "does not take a NoneType"
    ),
    "pixels of another size": (on_pixels(1, 3, 10, 10), ShapeError, r"takes \(3, 64, 64\) each"),
    "grey pixels": (on_pixels(1, 1, 64, 64), ShapeError, r"takes \(3, 64, 64\) each"),
    "a token below 0": (measured(ns.logit(-5)), ConfigError, "-5 is no token"),
    "a token between two": (measured(ns.logit(3.7)), ConfigError, "3.7 is no token"),  # pyright: ignore[reportArgumentType]
    "no token": (measured(ns.logit(None)), ConfigError, "None is no token"),  # pyright: ignore[reportArgumentType]
    "a token beyond": (measured(ns.logit(10**6)), ConfigError, r"has 0 … 4095"),
    "half a position": (measured(ns.logit(3, position=1.5)), ConfigError, "position=1.5: expected a whole number"),  # pyright: ignore[reportArgumentType]
    "cosine to a number": (toward(3), InputError, "does not take a int"),
    "cosine to nothing": (toward(np.zeros(128)), NonFiniteError, "without a direction"),
    "steps as text": (
        lambda g: ns.attribute(g.lm, g.stream, TEXT, g.metric, method="integrated", steps="4"), ConfigError, "steps='4'"
    ),
    "half a context": (
        lambda g: ns.attribute(g.lm, g.stream, TEXT, g.metric, batch=1.5), ConfigError, r"batch=1\.5: expected"
    ),
    "no dictionary": (lambda g: ns.attribute(g.lm, None, TEXT, g.metric), ConfigError, "expected a Dictionary"),
    "several dictionaries": (
        lambda g: ns.attribute(g.lm, {STREAM: g.stream}, TEXT, g.metric), ConfigError, r"pass \.dictionaries\[site\]"
    ),
    "another model": (lambda g: ns.attribute(g.lm, g.other, TEXT, g.metric), ConfigError, "trained on model 'another'"),
    "heads of another model": (
        lambda g: ns.head_weights(g.lm, g.other, site=ATTENTION), ConfigError, "trained on model 'another'"
    ),
    "a reader of another model": (lambda g: ns.reader(g.lm, g.other), ConfigError, "trained on model 'another'"),
    "heads of nothing": (lambda g: ns.direct_attribution(g.lm, None, TEXT, 3), ConfigError, "expected a Dictionary"),
    "half a target": (
        lambda g: ns.direct_attribution(g.lm, g.heads, TEXT, 3, targets=[1.7]), ConfigError, r"targets=\[1\.7\]"
    ),
    "a block by name": (lambda g: ns.head_scores(g.lm, ["a"]), ConfigError, "layer='a' does not exist"),
    "tokens as text": (lambda g: ns.head_scores(g.lm, tokens="3"), ConfigError, "tokens='3'"),
    "neurons of a block by name": (lambda g: ns.neuron_lens(g.lm, "a"), ConfigError, "layer='a' does not exist"),
    "a lens without a dictionary": (lambda g: ns.logit_lens(g.lm, None), ConfigError, "expected a Dictionary"),
    "half a token": (lambda g: ns.logit_lens(g.lm, g.stream, top=2.5), ConfigError, "top=2.5 is outside"),
    "no tables": (lambda g: ns.neuron_agreement(None, None), InputError, "expected two of"),  # pyright: ignore[reportArgumentType]
    "a folder as pictures": (
        lambda g: ns.vision_lens(g.clip, "folder", ["a", "b"], progress=False), InputError, r"ns\.images\(folder\)"
    ),
    "numbers as pictures": (
        lambda g: ns.vision_lens(g.clip, [1], ["a", "b"], progress=False), InputError, "does not take a int"
    ),
    "numbers as texts": (
        lambda g: ns.vision_lens(g.clip, [g.picture], [1, 2], progress=False), ConfigError, "1 is among the texts"
    ),
    "no pictures at a time": (
        lambda g: ns.vision_lens(g.clip, [g.picture], ["a", "b"], batch=0, progress=False), ConfigError, "batch=0"
    ),
    "a block of a lens by name": (lambda g: g.lens.patches("a"), ConfigError, "layer='a' does not exist"),
    "labels in one text": (lambda g: g.lens.identifiability("a dog"), InputError, "expected a list with one label"),
    "half a text": (lambda g: g.lens.top(1.5), ConfigError, r"k=1\.5"),
    "no latent": (lambda g: ns.reader(g.lm, g.stream)("hi there", ["a"]), ConfigError, "'a' is a name"),
    "a number as lanes": (lambda g: ns.layer_sites(g.lm, 3), ConfigError, "3 is no lane"),
    "text as logits": (lambda g: g.lm.logits("hello"), ShapeError, "Got a str; expected .* token ids"),
    "no contexts": (lambda g: g.lm.next_token_loss(torch.zeros(0, 4).long()), ShapeError, "at least one context"),
    "no texts": (lambda g: g.lm.next_token_loss(None), InputError, "Got a NoneType; expected texts"),
    "texts none at a time": (lambda g: g.lm.next_token_loss([TEXT], batch=0), ConfigError, "batch=0"),
    "tokens to write as text": (lambda g: g.lm.generate("hi", tokens="4"), ConfigError, "tokens='4'"),
    "a seed as text": (lambda g: g.lm.generate("hi", tokens=2, seed="a"), ConfigError, "seed='a'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_mistyped_is_refused_with_what_to_give_instead(given, what):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call(given)


def test_a_model_left_in_training_mode_is_refused_and_not_put_back_in_silence(given):
    for model, call in (
        (given.lm, lambda: ns.attribute(given.lm, given.stream, TEXT, given.metric)),
        (given.clip, lambda: ns.vision_lens(given.clip, [given.picture], ["a", "b"], progress=False)),
        (given.clip, lambda: given.clip.encode_text("a dog")),
    ):
        model.module.train()
        try:
            with pytest.raises(ConfigError, match=r"is in training mode.*model\.module\.eval\(\)"):
                call()
            assert model.module.training
        finally:
            model.module.eval()


def test_one_number_stands_for_a_list_of_one(given):
    one = ns.head_scores(given.lm, 2, contexts=1)
    assert one.equals(ns.head_scores(given.lm, [2], contexts=1))
    assert ns.induction_curve(given.lm, 0, prefixes=3, contexts=1)["prefix"].unique().to_list() == [3]
    assert given.lens.patches(0, inputs=0).equals(given.lens.patches(0, inputs=[0]))


@pytest.mark.parametrize(
    ("draw", "schema"),
    [
        (plots.faithfulness, FAITHFULNESS),
        (plots.head_scores, HEAD_SCORES),
        (plots.head_weights, HEAD_WEIGHTS),
        (plots.identifiability, IDENTIFIABILITY),
        (plots.induction_curve, INDUCTION),
    ],
)
def test_a_figure_of_an_empty_table_is_empty_and_one_of_no_table_refused(draw, schema):
    assert "nan" not in draw(schema.to_frame()).layout.title.text
    with pytest.raises(WidgetError, match="was given a int"):
        draw(3)
