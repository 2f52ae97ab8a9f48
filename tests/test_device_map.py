"""Models spread by accelerate's device_map: here over main memory and disk, as no second device is at hand."""

from __future__ import annotations

import copy

import pytest
import torch

import nb_sae as ns
from nb_sae.errors import ConfigError

accelerate = pytest.importorskip("accelerate")
SITES = ["gpt_neox.layers.1", "gpt_neox.layers.2"]


@pytest.fixture(scope="module")
def whole() -> ns.LanguageModel:
    return ns.load_lm("demo", device="cpu")


@pytest.fixture(params=["late layers", "the first layer", "all but the head"])
def spread(request, whole, tmp_path) -> torch.nn.Module:
    """The same model with some of its weights on the disk until they are needed."""
    places = {name: "cpu" for name, _ in whole.module.named_children() if name != "gpt_neox"}
    places |= {f"gpt_neox.{name}": "cpu" for name, _ in whole.module.gpt_neox.named_children() if name != "layers"}
    places |= {f"gpt_neox.layers.{number}": "cpu" for number in range(len(whole.module.gpt_neox.layers))}
    for name in places:
        late = name in ("gpt_neox.layers.1", "gpt_neox.layers.2")
        chosen = {
            "late layers": late,
            "the first layer": name == "gpt_neox.layers.0",
            "all but the head": "gpt_neox" in name,
        }
        if chosen[request.param] and any(True for _ in whole.module.get_submodule(name).parameters()):
            places[name] = "disk"
    module = copy.deepcopy(whole.module)
    return accelerate.dispatch_model(module, places, main_device="cpu", offload_dir=str(tmp_path / "weights"))


def test_a_spread_model_gives_the_rows_and_the_revision_of_the_whole_one(spread, whole, tmp_path):
    assert any(weight.is_meta for weight in spread.parameters()), "the model was meant to be spread"
    model = ns.load_lm(spread, tokenizer=whole.tokenizer, name=whole.name)
    assert model.device == torch.device("cpu")
    assert model.revision == whole.revision
    texts = ns.texts(["A list is a sequence.", "def f(x): return x", "import os"], context_tokens=16)
    options = {"site": SITES, "dtype": "float32", "progress": False}
    found = ns.ActivationStore.collect(model, texts, path=tmp_path / "spread", **options)
    expected = ns.ActivationStore.collect(whole, texts, path=tmp_path / "whole", **options)
    for site in SITES:
        assert torch.equal(found[site][:], expected[site][:])
        assert len(found[site]) > 10


def test_a_spread_model_can_be_edited(spread, whole):
    model = ns.load_lm(spread, tokenizer=whole.tokenizer, name=whole.name)
    ids = torch.arange(12).view(2, 6)
    for one in (model, whole):
        with ns.intervene(one, {SITES[0]: lambda rows: 2 * rows}):
            one.seen = one.capture_rows(ids, [SITES[1]], "text")[SITES[1]]
    assert torch.equal(model.seen, whole.seen)
    assert not torch.equal(whole.seen, whole.capture_rows(ids, [SITES[1]], "text")[SITES[1]])


def test_a_spread_model_is_not_moved_and_one_without_values_is_refused(spread, whole):
    for given in ({"device": "cpu"}, {"dtype": "bf16"}):
        with pytest.raises(ConfigError, match=r"spread over cpu, disk by its device_map.*Leave it out"):
            ns.load_lm(spread, tokenizer=whole.tokenizer, **given)
    with pytest.raises(ConfigError, match=r"is on the device 'meta' and has no values\. Load the model with"):
        ns.load_lm(copy.deepcopy(whole.module).to("meta"), tokenizer=whole.tokenizer)
