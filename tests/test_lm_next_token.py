"""Promises of logits, next-token loss and generate, against Hugging Face and against models that count."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from test_lm import byte_level
from tiny_models import ENCODERS, PRE_NORM, VOCABULARY, lively
from torch import Tensor, nn

import nb_sae as ns
from nb_sae.errors import ConfigError, InputError, ShapeError
from nb_sae.hooks import intervene
from nb_sae.models.lm import LanguageModel, load_lm
from nb_sae.models.tokens import PADDING


class Counting(nn.Module):
    """Says that the next token is the one before plus one."""

    def __init__(self, sureness: float) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.ones(VOCABULARY, 4))
        self.sureness = sureness

    def forward(self, tokens: Tensor) -> Tensor:
        carried = self.embed(tokens)[..., :1]  # a site; 1 where nobody changes it
        return carried * self.sureness * nn.functional.one_hot((tokens + 1) % VOCABULARY, VOCABULARY).float()


class Numbers:
    """A tokenizer of numbers; 50 is the end mark."""

    eos_token_id, all_special_ids = 50, (50,)

    def encode(self, text: str) -> list[int]:
        return [int(word) if word.isdigit() else 1 for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def counting(sureness: float = 40.0) -> LanguageModel:
    return load_lm(Counting(sureness), tokenizer=Numbers(), context_tokens=12, name="counting")


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return load_lm(device="cpu")


def ids(contexts: int = 3, tokens: int = 8) -> Tensor:
    return torch.randint(2, VOCABULARY, (contexts, tokens), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_losses_equal_hugging_faces_own(family):
    lm = load_lm(lively(PRE_NORM[family]()), name=family)
    with torch.no_grad():
        expected = lm.module(ids(), labels=ids())
    torch.testing.assert_close(lm.logits(ids()), expected.logits)
    torch.testing.assert_close(lm.token_losses(ids()).mean(), expected.loss)
    assert lm.next_token_loss(ids(), batch=2) == pytest.approx(expected.loss.item(), rel=1e-6)


def test_a_model_that_knows_loses_nothing_and_one_that_guesses_loses_the_logarithm():
    sequence = torch.arange(2, 10)[None]
    assert counting().next_token_loss(sequence) < 1e-6
    assert counting(0.0).next_token_loss(sequence) == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert counting().next_token_loss(sequence.flip(1)) == pytest.approx(40.0, rel=1e-6)


def test_padding_is_neither_asked_for_nor_counted():
    batch = torch.tensor([[3, 4, 5, 9], [7, 8, PADDING, PADDING]])
    losses = counting().token_losses(batch)
    assert losses.shape == (2, 3)
    assert losses.isnan().tolist() == [[False, False, False], [False, True, True]]
    # Two hits and a miss in one context, a hit in the other: the mean is over tokens, not over contexts.
    assert counting().next_token_loss(batch) == pytest.approx(40.0 / 4, rel=1e-6)


def test_texts_are_cut_as_a_store_cuts_them(demo):
    texts = ["Return the number of items in the list.", "import os"]
    batch = torch.cat([demo.preprocessor()(text).tensor for text in texts])
    expected = demo.next_token_loss(batch)
    assert demo.next_token_loss(texts) == demo.next_token_loss(ns.texts(texts)) == expected
    assert demo.next_token_loss(texts, batch=1) == pytest.approx(expected, rel=1e-6)
    assert demo.next_token_loss(texts[0]) != expected
    assert expected < 6  # a uniform guess over its 4,096 tokens is 8.3


def test_gradients_reach_an_edit(demo):
    batch, kept = demo.contexts("a list of")[:, :3], []

    def edit(rows: Tensor) -> Tensor:
        kept.append(rows.detach().requires_grad_())
        return kept[-1]

    with intervene(demo, {"gpt_neox.layers.1": edit}):
        (gradient,) = torch.autograd.grad(demo.logits(batch)[0, -1, 7], kept)
    assert gradient.shape == (1, 3, 192)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_not_asked_for_the_next_token(name):
    lm = load_lm(lively(ENCODERS[name]()), tokenizer=byte_level(), name=name)
    assert lm.logits(ids()).shape == (3, 8, VOCABULARY)
    for ask in (lambda: lm.next_token_loss(ids()), lambda: lm.token_losses(ids()), lambda: lm.generate("a", tokens=1)):
        with pytest.raises(ConfigError, match=rf"{name} is an encoder: every position sees all the others"):
            ask()


@pytest.mark.parametrize("kind", ["bare", "classifier", "tags"])
def test_a_model_without_a_language_model_head_says_so(kind):
    whole: Any = lively(tiny_models.gpt2(pad_token_id=0))
    module = {
        "bare": lambda: whole.transformer,
        "classifier": lambda: transformers.GPT2ForSequenceClassification(whole.config),
        "tags": lambda: transformers.GPT2ForTokenClassification(whole.config),
    }[kind]()
    with pytest.raises(ConfigError, match=r"headless gives .* no logits.*AutoModelForCausalLM"):
        load_lm(module, name="headless").next_token_loss(ids(1))


def test_tuples_and_tensors_are_both_read_as_logits():
    for output in (lambda x: (x, None), lambda x: x, lambda x: SimpleNamespace(logits=x)):

        class Wrapped(Counting):
            def forward(self, tokens: Tensor) -> Any:
                return output(super().forward(tokens))  # noqa: B023

        assert load_lm(Wrapped(40.0)).next_token_loss(torch.arange(5)[None]) < 1e-6


def test_what_cannot_be_predicted_is_refused(demo):
    with pytest.raises(InputError, match=r"no next token to predict\. Give longer texts"):
        counting().next_token_loss(torch.tensor([[4], [5]]))
    with pytest.raises(InputError, match="No texts were given"):
        demo.next_token_loss([])
    with pytest.raises(ShapeError, match="token ids"):
        demo.logits(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="context_tokens=200"):
        demo.logits(torch.zeros(1, 200, dtype=torch.long))
    with pytest.raises(InputError, match="Token id 5000 is outside"):
        demo.token_losses(torch.tensor([[5000, 1]]))


def test_a_model_that_counts_goes_on_counting_until_the_end_mark():
    assert counting().generate("3 4 5", tokens=4) == " 6 7 8 9"
    assert counting().generate("47", tokens=10) == " 48 49"
    with intervene(lm := counting(), {"embed": torch.neg}):  # the next number is now the least likely one
        assert lm.generate("3", tokens=2) == " 0 0"


def test_greedy_text_equals_hugging_faces_own(demo):
    prompt = "Return the number of"
    given = demo.tokenizer(prompt, return_tensors="pt")
    written = demo.module.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = demo.tokenizer.decode(written[0])[len(prompt) :]
    assert demo.generate(prompt, tokens=12) == expected
    assert demo.generate(prompt, tokens=12) == expected


def test_a_seed_draws_the_same_text_and_leaves_the_worlds_randomness_alone(demo):
    state = torch.get_rng_state()
    drawn = [demo.generate("The", tokens=8, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert demo.generate("The", tokens=8, seed=3, temperature=1e-4) == demo.generate("The", tokens=8)


def test_tokens_are_drawn_by_their_probability():
    # log 3 on one of sixty: three in sixty-two, and one in sixty-two for each of the others.
    lm = counting(math.log(3))
    drawn = [lm.generate("3", tokens=1, seed=seed) for seed in range(620)]
    assert 30 - 4 * 5.4 < drawn.count(" 4") < 30 + 4 * 5.4
    assert len(set(drawn)) > 50


def test_an_edit_changes_what_is_written_at_every_token(demo):
    before = demo.generate("Return the", tokens=6)
    lengths: list[int] = []

    def note(rows: Tensor) -> Tensor:
        lengths.append(rows.shape[1])
        return torch.zeros_like(rows)

    with intervene(demo, {"gpt_neox.layers.2": note}):
        during = demo.generate("Return the", tokens=6)
    assert during != before == demo.generate("Return the", tokens=6)
    start = lengths[0]
    assert lengths == list(range(start, start + 6))


def test_prompts_beyond_the_context_are_refused(demo):
    with pytest.raises(InputError, match=r"The prompt has 401 tokens; demo-lm sees at most 128.*Shorten the prompt"):
        demo.generate("a " * 400)
    with pytest.raises(ConfigError, match=r"and 200 more were asked for.*or ask for tokens=\d+ or fewer"):
        demo.generate("def f(x):", tokens=200)
    most = 128 - len(demo.tokenizer("def f(x):")["input_ids"])
    with pytest.raises(ConfigError, match=f"tokens={most} or fewer"):
        demo.generate("def f(x):", tokens=most + 1)


def test_prompts_and_settings_that_make_no_sense_are_refused(demo):
    with pytest.raises(InputError, match="The prompt has no tokens"):
        demo.generate("")
    with pytest.raises(InputError, match="Got a list as prompt"):
        demo.generate(["a"])
    with pytest.raises(ConfigError, match="tokens=0 asks for nothing"):
        demo.generate("a", tokens=0)
    with pytest.raises(ConfigError, match=r"temperature=0 is not above 0"):
        demo.generate("a", seed=1, temperature=0)
    with pytest.raises(ConfigError, match="tokenizer="):
        load_lm(demo.module).generate("a")


def test_the_start_mark_is_put_before_the_prompt_and_the_end_mark_is_not():
    lm = load_lm(lively(tiny_models.neox(vocab_size=300)), tokenizer=byte_level(adds_start=True), context_tokens=12)
    seen: list[Tensor] = []
    handle = lm.module.gpt_neox.embed_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    lm.generate("hello", tokens=1)
    handle.remove()
    assert seen[-1][0].tolist() == lm.tokenizer("hello")["input_ids"]
    assert seen[-1][0, 0] == lm.tokenizer.bos_token_id
