"""What attribution refuses: settings, prompts, metrics, models and dictionaries that do not belong together."""

from __future__ import annotations

import pytest
import torch
import transformers
from linear_readout import linear_lm, prompts, random_dictionary
from test_attribution import BLOCK, TEXT
from test_attribution import clip as clip
from test_attribution import lm as lm
from test_attribution import pictures as pictures

from nb_sae.attribution.output import attribute
from nb_sae.attribution.output_metrics import cosine_to, log_prob, logit
from nb_sae.errors import ConfigError, HookError, InputError, NonFiniteError, ShapeError
from nb_sae.models.lm import load_lm

BAD = {
    "unknown method": ({"method": "magic"}, ConfigError, "Use 'gradient', 'integrated' or 'ablation'"),
    "unknown tokens": ({"tokens": "some"}, ConfigError, "Use 'all', 'cls' or 'patches'"),
    "no prefix": ({"tokens": "cls"}, ConfigError, "has no CLS or other prefix token"),
    "no steps": ({"steps": 0}, ConfigError, "at least 1 step"),
    "no contexts": ({"batch": 0}, ConfigError, "at least one context"),
    "unknown latent": ({"latents": [99]}, ConfigError, "0 … 31"),
    "unknown site": ({"site": "strean"}, HookError, "Closest: stream"),
    "another width": ({"site": "head"}, ShapeError, "has width 11; the dictionary takes 16"),
    "no metric": ({"metric": 3}, ConfigError, "expected a function of the model's output"),
    "many numbers": ({"metric": lambda logits: logits[-1]}, ShapeError, r"gave shape \(11,\); expected one number"),
    "no number": ({"metric": lambda logits: "high"}, ShapeError, "gave a str; expected one number"),
    "no gradient": ({"metric": lambda logits: logits[-1, 3].item()}, ConfigError, "No gradient comes back"),
    "NaN": ({"metric": lambda logits: logits[-1, 3] * torch.nan}, NonFiniteError, "For input 0, your metric is nan"),
    "NaN slope": ({"metric": lambda logits: (logits[-1, 3] * 0).sqrt()}, NonFiniteError, "gradient of your metric"),
    "no such position": ({"metric": logit(3, position=9)}, ShapeError, "position=9: the prompt has 6 tokens"),
    "no such token": ({"metric": logit(99)}, ConfigError, "Token 99 is none of linear, which has 0 … 10"),
    "token without tokenizer": ({"metric": logit("a")}, ConfigError, "Give the token's id"),
    "cosine of a language model": ({"metric": cosine_to("a hat")}, ConfigError, "cosine_to needs a CLIP"),
    "no ids": ({"inputs": torch.zeros(0, 4, dtype=torch.long)}, InputError, "hold nothing"),
    "only padding": ({"inputs": torch.tensor([[-1, -1]])}, InputError, "only padding"),
    "pixels": ({"inputs": torch.zeros(1, 3, 8, 8)}, ShapeError, "expected token ids"),
    "no inputs": ({"inputs": []}, ConfigError, "No inputs"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_attributed_is_refused(what):
    change, error, message = BAD[what]
    given = {"inputs": prompts(), "metric": logit(3)} | change
    with pytest.raises(error, match=message):
        attribute(linear_lm(), random_dictionary(), given.pop("inputs"), given.pop("metric"), **given)


def test_prompts_that_the_model_cannot_read_are_refused(lm):
    dictionary = random_dictionary(192, 256, BLOCK)
    with pytest.raises(InputError, match=r"has \d+ tokens; demo-lm sees 128 at once"):
        attribute(lm, dictionary, "word " * 300, log_prob(20))
    with pytest.raises(InputError, match="The prompt has 200 tokens; demo-lm sees 128"):
        attribute(lm, dictionary, torch.zeros(1, 200, dtype=torch.long), log_prob(20))
    with pytest.raises(InputError, match="outside the model's vocabulary"):
        attribute(lm, dictionary, torch.tensor([[9_999]]), log_prob(20))
    with pytest.raises(InputError, match="Input 1 is an empty text"):
        attribute(lm, dictionary, [TEXT, ""], log_prob(20))
    with pytest.raises(ConfigError, match=r"'Mississippi' is \d+ tokens for demo-lm"):
        attribute(lm, dictionary, TEXT, log_prob("Mississippi"))


def test_what_is_no_model_of_the_dictionary_is_refused(lm, clip, pictures):
    with pytest.raises(ConfigError, match="expected one from load_lm"):
        attribute(torch.nn.Linear(2, 2), random_dictionary(), TEXT, log_prob(20))
    with pytest.raises(ConfigError, match="has no logits over tokens"):
        attribute(clip, random_dictionary(128, 64, "image_embed"), pictures, log_prob(20))
    with pytest.raises(InputError, match="this site takes images"):
        attribute(clip, random_dictionary(128, 64, "image_embed"), ["a hat"], cosine_to("a hat"))
    with pytest.raises(ShapeError, match=r"expected one embedding \(128,\)"):
        attribute(clip, random_dictionary(128, 64, "image_embed"), pictures, cosine_to(torch.zeros(5)))
    with pytest.raises(ConfigError, match="does not say which site"):
        attribute(lm, random_dictionary(192, 64, None), TEXT, log_prob(20))
    with pytest.raises(ConfigError, match="has one row per input"):
        attribute(clip, random_dictionary(128, 64, "image_embed"), pictures, cosine_to("a hat"), tokens="cls")
    with pytest.raises(ConfigError, match="A transcoder reads"):
        attribute(lm, random_dictionary(192, 64, BLOCK, target="gpt_neox.layers.3"), TEXT, log_prob(20))
    with pytest.raises(ConfigError, match="latents are active in 1 inputs"):
        attribute(lm, random_dictionary(192, 4096, BLOCK, budgets=None), TEXT, log_prob(20), method="ablation")


def test_an_encoder_is_not_asked_for_the_next_token():
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**shape, intermediate_size=32, max_position_embeddings=16, pad_token_id=0)
    bert = load_lm(transformers.BertForMaskedLM(config), name="tiny-bert")
    dictionary = random_dictionary(site="bert.encoder.layer.0")
    with pytest.raises(ConfigError, match="tiny-bert is an encoder"):
        attribute(bert, dictionary, prompts(), log_prob(3))
    own = attribute(bert, dictionary, prompts(), lambda logits: logits[0, 3])  # a mask's own answer can be explained
    assert own.latents["attribution"].to_numpy().any()
    bare = load_lm(transformers.BertModel(config), name="bare")
    with pytest.raises(ConfigError, match="bare"):
        attribute(bare, random_dictionary(site="encoder.layer.0"), prompts(), log_prob(3))
