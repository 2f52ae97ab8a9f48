"""What a model loses: the loss recovered in the demo language model, CLIP's zero-shot answers."""

from __future__ import annotations

import math

import planted
import pytest
import torch
from metric_fakes import gaussian

import nb_sae as ns
from nb_sae.errors import ConfigError, NonFiniteError, ShapeError
from nb_sae.sae import metrics


def test_loss_recovered_is_one_at_the_clean_loss_and_zero_at_the_ablation():
    assert metrics.loss_recovered(2.0, 2.0, 5.0).value == 1
    assert metrics.loss_recovered(2.0, 5.0, 5.0).value == 0
    half = metrics.loss_recovered(lambda: torch.tensor(2.0), lambda: 3.5, lambda: 5.0)
    assert half.value == 0.5
    assert half.increase == 1.5
    assert metrics.loss_recovered(2.0, 8.0, 5.0).value == -1


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ((2.0, 2.5, 2.0), "does not change the loss"),
        ((2.0, 2.5, 1.0), "lowers the loss"),
        ((2.0, math.nan, 5.0), "not finite: spliced"),
    ],
)
def test_loss_recovered_is_undefined_with_a_reason(losses, reason):
    found = metrics.loss_recovered(*losses)
    assert math.isnan(found.value)
    assert reason in found.reason
    with pytest.raises(ConfigError, match="clean loss has shape"):
        metrics.loss_recovered(torch.ones(2), 1.0, 2.0)


def test_next_token_loss_leaves_out_padding_and_the_last_position():
    logits, ids = gaussian(2, 4, 7), torch.randint(0, 7, (2, 4), generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, True, True], [True, True, False, False]])
    log_p = logits.log_softmax(-1)
    terms = [-log_p[i, t, ids[i, t + 1]] for i, t in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert metrics.next_token_loss(logits, ids, keep=keep) == pytest.approx(float(sum(terms) / 4))
    assert metrics.prediction_kl(logits, logits) == 0
    assert metrics.prediction_kl(logits, gaussian(2, 4, 7, seed=1)) > 0
    with pytest.raises(ConfigError, match="No token"):
        metrics.next_token_loss(logits[:, :1], ids[:, :1])
    with pytest.raises(ShapeError, match="expected"):
        metrics.next_token_loss(logits, ids[:, :3])


def test_prediction_kl_equals_its_definition_and_0_log_0_is_0():
    clean, spliced = gaussian(3, 5), gaussian(3, 5, seed=1)
    clean[:, 4] = spliced[:, 4] = -math.inf
    p, q = (logits[:, :4].softmax(-1) for logits in (clean, spliced))
    expected = (p * (p / q).log()).sum(-1)
    assert metrics.prediction_kl(clean, spliced) == pytest.approx(float(expected.mean()))
    keep = torch.tensor([True, False, True])
    assert metrics.prediction_kl(clean, spliced, keep=keep) == pytest.approx(float(expected[keep].mean()))
    assert metrics.prediction_kl(clean, clean) == 0
    with pytest.raises(ConfigError, match="No prediction is left"):
        metrics.prediction_kl(clean, spliced, keep=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="5 and of 4 classes"):
        metrics.prediction_kl(clean, spliced[:, :4])


def test_loss_recovered_in_the_demo_language_model():
    """The user's glue: `intervene` puts x̂ in the place of the rows; `sae` knows no model."""
    lm, site = ns.load_lm("demo"), "gpt_neox.layers.1"
    prepare = lm.preprocessor("text", context_tokens=32)
    ids = torch.cat([prepare(text).tensor[:1] for text in ns.demo_texts(16, seed=0) if len(text) > 500])
    rows = lm.capture_rows(ids, [site], "text")[site].flatten(0, 1)
    axes, mean = ns.classical.pca(rows), rows.mean(0)
    both_ways = torch.cat([axes.W_dec, -axes.W_dec])
    weights = {"W_enc": both_ways.T, "b_enc": torch.zeros(len(both_ways)), "W_dec": both_ways, "b_dec": axes.b_dec}
    dictionary = ns.Dictionary(weights, budgets=(4, 32, axes.d_sae), site=site)

    def loss(edit=None) -> float:
        with torch.no_grad(), ns.intervene(lm, {site: edit} if edit else {}):
            return metrics.next_token_loss(lm.module(input_ids=ids).logits, ids)

    def spliced(k: int):
        return lambda x: dictionary.reconstruct(x.flatten(0, -2), k).view_as(x)

    clean, ablated = loss(), loss(lambda x: mean.expand_as(x).clone())
    assert clean + 0.5 < ablated
    recovered = [metrics.loss_recovered(clean, loss(spliced(k)), ablated).value for k in dictionary.budgets]
    assert recovered[0] < recovered[1] < recovered[2]
    assert recovered[2] == pytest.approx(1, abs=1e-3)


def test_zero_shot_with_perfect_and_with_useless_reconstructions():
    texts = planted.atoms(5, 32)
    labels = torch.arange(5).repeat(40)
    images = 10 * texts[labels] + gaussian(200, 32).float()
    same = metrics.zero_shot(images, images, texts, labels)
    assert same.accuracy == same.accuracy_reconstructed > 0.95
    assert same.kl == 0
    assert same.agreement == 1
    assert same.accuracy_null == pytest.approx(0.2)
    useless = metrics.zero_shot(images, gaussian(200, 32, seed=4).float(), texts, labels)
    assert useless.accuracy_reconstructed < 0.4
    assert useless.agreement == pytest.approx(useless.agreement_null, abs=0.15)
    with pytest.raises(ConfigError, match="from 0 to 4"):
        metrics.zero_shot(images, images, texts, labels + 1)
    with pytest.raises(ShapeError, match="expected"):
        metrics.zero_shot(images, images[:, :31], texts, labels)
    broken = images.clone()
    broken[7] = math.nan
    with pytest.raises(NonFiniteError, match="Row 7 of the reconstructions"):
        metrics.zero_shot(images, broken, texts, labels)


def test_zero_shot_of_one_image_for_all_answers_one_class():
    """Degenerate: reconstructions that are all equal say the same of every image, and so does another row's."""
    texts = planted.atoms(4, 16)
    labels = torch.arange(4).repeat(10)
    found = metrics.zero_shot(texts[labels], texts[:1].expand(40, 16), texts, labels)
    assert found.accuracy_reconstructed == found.accuracy_null == 0.25
    assert found.agreement == found.agreement_null
    assert found.kl == pytest.approx(found.kl_null)
