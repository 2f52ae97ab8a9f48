"""The probe is at its minimum, the closed form is the direct one, and other classifiers are asked as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from nb_sae.concepts.bias.classifier import (
    FunctionClassifier,
    LinearClassifier,
    auc,
    decided,
    logistic,
    make_classifier,
    train_probe,
)
from nb_sae.concepts.bias.labels import Label
from nb_sae.errors import ConfigError, InputError

BINARY = Label("Male", "binary", np.tile([0, 1], 100), ("not Male", "Male"))
SEVERAL = Label("race", "classes", np.tile([0, 1, 2, 0], 50), ("race=a", "race=b", "race=c"))


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 6, generator=generator) + torch.tensor(BINARY.codes)[:, None] * 0.5 + 1


@pytest.mark.parametrize("label", [BINARY, SEVERAL], ids=["two", "three"])
def test_logistic_is_where_the_gradient_is_zero_and_where_scikit_learn_ends(rows, label):
    features, codes = rows.double(), torch.from_numpy(label.codes)
    W, b = logistic(features, codes, len(label.classes), l2=1.0)
    W.requires_grad_(True)
    b.requires_grad_(True)
    logits = features @ W + b
    if W.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], codes.double(), reduction="sum")
    else:
        loss = F.cross_entropy(logits, codes, reduction="sum")
    (loss + W.square().sum() / 2).backward()
    assert W.grad.abs().max() < 1e-5
    assert b.grad.abs().max() < 1e-5
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(features.numpy(), label.codes)
    mine = logits.detach().softmax(-1).numpy() if W.shape[1] > 1 else logits.detach().sigmoid().numpy()
    expected = theirs.predict_proba(features.numpy())
    np.testing.assert_allclose(mine, expected if W.shape[1] > 1 else expected[:, 1:], atol=1e-4)


def test_probe_does_not_depend_on_the_scale_of_rows(rows):
    codes = torch.from_numpy(BINARY.codes)
    one = train_probe(rows, codes, BINARY, ("Male",))
    other = train_probe(rows * 37, codes, BINARY, ("Male",))
    torch.testing.assert_close(one.probabilities(rows), other.probabilities(rows * 37), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [1, 3])
def test_steps_in_closed_form_equal_rows_that_are_moved(rows, columns):
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(6, columns, generator=generator).double()
    outputs = ("Male",) if columns == 1 else SEVERAL.classes
    classifier = LinearClassifier(W, torch.randn(columns, generator=generator).double(), outputs, {})
    directions = torch.randn(4, 6, generator=generator)
    steps = torch.randn(len(rows), 4, 5, generator=generator) * 3
    found = classifier.after(rows, directions, steps)
    asked = FunctionClassifier(lambda x: classifier.probabilities(x), outputs, {}).after(rows, directions, steps)
    torch.testing.assert_close(found, asked, rtol=1e-4, atol=1e-5)


def test_prompts_are_zero_shot_of_the_model(rows):
    class Clip:
        logit_scale = 7.0

        def encode_text(self, texts, normalize=False):
            table = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
            vectors = torch.stack([table[int("woman" in text)] for text in texts])
            return F.normalize(vectors, dim=-1) if normalize else vectors

    texts = Clip().encode_text(["a man", "a woman"], normalize=True)
    expected = (7.0 * F.normalize(rows, dim=-1) @ texts.T).softmax(-1)[:, :1]
    train = np.arange(100)
    by_order = make_classifier(("a man", "a woman"), BINARY, rows, train, clip=Clip())
    torch.testing.assert_close(by_order.probabilities(rows).float(), expected)
    named = {"not Male": "a woman", "Male": "a man"}
    torch.testing.assert_close(
        make_classifier(named, BINARY, rows, train, clip=Clip()).probabilities(rows), by_order.probabilities(rows)
    )
    with pytest.raises(ConfigError, match="Give one prompt for each"):
        make_classifier({"Male": "a man"}, BINARY, rows, train, clip=Clip())
    with pytest.raises(ConfigError, match="3 prompts"):
        make_classifier(("a", "b", "c"), BINARY, rows, train, clip=Clip())


def test_functions_may_give_one_column_or_one_for_each_class(rows):
    p = rows[:, 0].sigmoid()
    for given in (p, p[:, None], torch.stack([1 - p, p], 1), torch.stack([1 - p, p], 1).numpy()):
        found = make_classifier(lambda x, given=given: given, BINARY, rows, np.arange(9), clip=None).probabilities(rows)
        torch.testing.assert_close(found[:, 0].float(), p)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x[:, 0] * 9, "outside 0 … 1"),
        (lambda x: x[:3, 0], "expected"),
        (lambda x: x[:, 0] * torch.nan, "outside"),
    ],
)
def test_functions_that_give_no_probabilities_are_refused(rows, function, match):
    with pytest.raises(InputError, match=match):
        make_classifier(function, BINARY, rows, np.arange(9), clip=None).probabilities(rows)


def test_a_class_without_rows_to_train_on_is_named(rows):
    with pytest.raises(ConfigError, match="'not Male'"):
        make_classifier("linear-probe", BINARY, rows, np.arange(1, 200, 2), clip=None)


def test_decisions_and_auc_are_the_plain_ones():
    assert decided(torch.tensor([[0.2], [0.5], [0.9]])).tolist() == [0, 1, 1]
    assert decided(torch.tensor([[0.2, 0.5, 0.3]])).tolist() == [1]
    assert auc(np.array([0.1, 0.4, 0.4, 0.9]), [0, 0, 1, 1]) == pytest.approx(0.875)
    assert np.isnan(auc(np.array([0.1, 0.4]), [1, 1]))
