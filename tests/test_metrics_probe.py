"""Linear probes of reconstructions: planted classes, definitions, nulls, rows that teach nothing."""

from __future__ import annotations

import planted
import pytest
import torch
from metric_fakes import gaussian
from torch.nn import functional as F

from nb_sae.errors import ConfigError, NonFiniteError, ShapeError
from nb_sae.sae import metrics
from nb_sae.sae.metrics.probe import split_rows


@pytest.fixture(scope="module")
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows about four centres far from the origin, in units of a thousand."""
    labels = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))
    rows = 3 * planted.atoms(4, 16)[labels] + 0.5 * gaussian(400, 16).float()
    return 1000 * rows + 50, labels


@pytest.mark.parametrize("optimiser", ["lbfgs", "adamw"])
def test_probe_learns_and_keeps_a_copy_of_its_best_weights(labelled, optimiser):
    x, labels = labelled
    probe = metrics.train_probe(x, labels, optimiser=optimiser, weight_decay=0, iterations=80, patience=80)
    held = probe.validation_rows
    loss = F.nll_loss(probe.log_probabilities(x[held]), labels[held])
    assert float(loss) == pytest.approx(min(probe.history), rel=1e-5)
    assert (probe.log_probabilities(x).argmax(-1) == labels).float().mean() > 0.95


def test_best_weights_are_not_those_that_overfit_last():
    x = gaussian(60, 40).float()
    labels = (x[:, 0] + gaussian(60, seed=3).float() > 0).long()
    probe = metrics.train_probe(x, labels, weight_decay=0, iterations=100, patience=100)
    assert probe.history[-1] > 1.1 * probe.validation_loss
    held = probe.validation_rows
    assert float(F.nll_loss(probe.log_probabilities(x[held]), labels[held])) == pytest.approx(probe.validation_loss)


def test_probe_on_perfect_reconstructions_agrees_and_on_noise_is_at_its_null(labelled):
    x, labels = labelled
    same = metrics.linear_probe(x, x, labels)
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert same.agreement == 1
    assert same.accuracy == same.accuracy_reconstructed > 0.95
    assert same.accuracy_null < 0.4
    assert same.kl_null > 1
    noise = metrics.linear_probe(x, 1000 * gaussian(400, 16, seed=8).float() + 50, labels)
    assert noise.agreement == pytest.approx(noise.agreement_null, abs=0.12)
    assert noise.kl > 10 * max(same.kl, 1e-3)
    assert noise.rows == 120


def test_probe_fidelity_equals_its_definition(labelled):
    x, labels = labelled
    x_hat = x + 300 * gaussian(400, 16, seed=8).float()
    probe = metrics.train_probe(x[:300], labels[:300])
    found = metrics.probe_fidelity(probe, x[300:], x_hat[300:], labels[300:])
    p, q = (probe.log_probabilities(rows[300:]).double().exp() for rows in (x, x_hat))
    kl = (p * (p / q).log()).sum(-1)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.kl_std == pytest.approx(float(kl.std(correction=0)), rel=1e-4)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.accuracy_reconstructed == pytest.approx(float((q.argmax(-1) == labels[300:]).double().mean()))


def test_probe_keeps_the_rows_of_an_input_on_one_side():
    groups = torch.arange(40).repeat_interleave(5)
    train, held = split_rows(200, 0.3, groups=groups, seed=1)
    assert not set(groups[train].tolist()) & set(groups[held].tolist())
    assert len(held) == 60
    assert not torch.equal(held, split_rows(200, 0.3, groups=groups, seed=2)[1])


@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        (torch.ones(10, 2), torch.zeros(10, dtype=torch.long), ConfigError, "at least two"),
        (torch.ones(10, 2), torch.zeros(9, dtype=torch.long), ShapeError, "one whole number per row"),
        (torch.ones(10, 2), torch.zeros(10), ShapeError, "whole number"),
        (torch.ones(2, 2), torch.tensor([0, 1]), ConfigError, "leaves one side empty"),
        (torch.full((10, 2), torch.nan), torch.arange(10), NonFiniteError, "Row 0"),
    ],
)
def test_probe_refuses_bad_labels(x, labels, error, message):
    with pytest.raises(error, match=message):
        metrics.linear_probe(x, x, labels, test=0.1)


def test_probe_refuses_an_unknown_optimiser_and_no_iterations():
    x, labels = gaussian(20, 3), torch.arange(20) % 2
    with pytest.raises(ConfigError, match="optimiser='sgd'"):
        metrics.train_probe(x, labels, optimiser="sgd")
    with pytest.raises(ConfigError, match="iterations=0"):
        metrics.train_probe(x, labels, iterations=0)


def test_probe_on_constant_rows_answers_the_most_frequent_label():
    labels = torch.tensor([0, 1, 1] * 20)
    found = metrics.linear_probe(torch.ones(60, 3), torch.ones(60, 3), labels)
    assert found.accuracy == found.accuracy_null
    assert found.kl == pytest.approx(0, abs=1e-9)
