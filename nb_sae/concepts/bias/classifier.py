"""What gives the probabilities that a report is about: a linear probe, zero-shot prompts, or any function of rows.

Owns fitting and asking. Every classifier can be asked what it says after a step along a direction; a linear one answers
in closed form, however many steps there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nb_sae.concepts.bias.labels import Label
from nb_sae.errors import ConfigError, InputError

CALL_ROWS = 8192
"""Rows that a function is given at a time."""
L2 = 1.0
"""Of a probe: ½ L2·‖W‖² beside the summed cross-entropy, as scikit-learn's C = 1."""
_ITERATIONS = 1000
FINE = 1e-8
"""Where a probe ends: no derivative of the loss per row is above it."""
ROUGH = 1e-5
"""Where a probe of shuffled labels may end: a thousandth of the slope at which it starts, with some thousand rows."""


class Classifier(Protocol):
    """Probabilities of classes from rows in model units."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Classes whose probability it gives; of two classes the one that is asked about."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """What it is and how it takes the rows."""
        ...

    def probabilities(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows outputs"]:
        """Of each output."""
        ...

    def after(
        self,
        x: Float[Tensor, "rows d_in"],
        directions: Float[Tensor, "m d_in"],
        steps: Float[Tensor, "rows m values"],
    ) -> Float[Tensor, "rows m values outputs"]:
        """Of x + step · direction, for each direction and step."""
        ...


@dataclass(frozen=True)
class LinearClassifier:
    """Logits x/‖x‖ W + b; one column is the logit of one output, several are a softmax.

    Several probes may lie side by side: each has its own columns, and outputs.
    """

    W: Float[Tensor, "d_in columns"]
    b: Float[Tensor, " columns"]
    outputs: tuple[str, ...]
    about: dict[str, Any]
    probes: int = 1

    def probabilities(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows outputs"]:
        """Of each output."""
        return self._chances(F.normalize(x.double(), dim=-1) @ self.W + self.b)

    def after(
        self,
        x: Float[Tensor, "rows d_in"],
        directions: Float[Tensor, "m d_in"],
        steps: Float[Tensor, "rows m values"],
    ) -> Float[Tensor, "rows m values outputs"]:
        """Of x + step · direction: products and norms are made once, the steps are arithmetic on them."""
        x, directions, steps = x.double(), directions.double(), steps.double()
        along = (x @ directions.T)[:, :, None]
        square = x.square().sum(-1)[:, None, None] + steps * (2 * along + steps * directions.square().sum(-1)[:, None])
        logits = (x @ self.W)[:, None, None] + steps[..., None] * (directions @ self.W)[:, None]
        return self._chances(logits / square.clamp_min(1e-24).sqrt()[..., None] + self.b)

    def _chances(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == self.probes:
            return logits.sigmoid()
        return logits.unflatten(-1, (self.probes, -1)).softmax(-1).flatten(-2)


@dataclass(frozen=True)
class FunctionClassifier:
    """Somebody's own function of rows `(rows, d_in)`: P of the one output, or one column per class."""

    function: Callable[[Tensor], Any]
    outputs: tuple[str, ...]
    about: dict[str, Any]

    def probabilities(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows outputs"]:
        """Of each output.

        Raises:
            InputError: another shape, or numbers that are no probabilities.
        """
        if not len(x):
            return torch.empty(0, len(self.outputs), dtype=torch.double)
        return torch.cat([self._asked(part) for part in x.split(CALL_ROWS)])

    def _asked(self, x: Tensor) -> Tensor:
        given = torch.as_tensor(np.asarray(_on_cpu(self.function(x.float())))).double()
        expected = len(self.outputs)
        if expected == 1:
            if given.shape == (len(x), 2):
                given = given[:, 1]  # (not, yes), as predict_proba gives them
            given = given.reshape(-1, 1) if given.numel() == len(x) else given
        if given.shape != (len(x), expected):
            wanted = "(rows,)" if expected == 1 else f"(rows, {expected}), in the order {', '.join(self.outputs)}"
            raise InputError(f"classifier gave shape {tuple(given.shape)} for {len(x)} rows; expected {wanted}.")
        if not bool(torch.isfinite(given).all()) or given.min() < -1e-6 or given.max() > 1 + 1e-6:
            raise InputError("classifier gave numbers outside 0 … 1. Return probabilities, such as logits.sigmoid().")
        return given

    def after(
        self,
        x: Float[Tensor, "rows d_in"],
        directions: Float[Tensor, "m d_in"],
        steps: Float[Tensor, "rows m values"],
    ) -> Float[Tensor, "rows m values outputs"]:
        """Of x + step · direction, by asking for each."""
        rows, count, values = steps.shape
        answers = torch.empty(rows, count, values, len(self.outputs), dtype=torch.double)
        for number, direction in enumerate(directions):
            for value in range(values):
                answers[:, number, value] = self.probabilities(
                    x + steps[:, number, value, None].to(x.dtype) * direction
                )
        return answers


def decided(probabilities: Float[Tensor, "rows outputs"]) -> Int[Tensor, " rows"]:
    """Class of each row: of two the second at ½ and above, of several the likeliest."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] >= 0.5).long()
    return probabilities.argmax(-1)


def make_classifier(
    which: Any, target: Label, x: Float[Tensor, "rows d_in"], train: Int[np.ndarray, " train"], *, clip: Any
) -> Classifier:
    """The classifier of a report: "linear-probe" is trained here, on the train rows alone.

    Args:
        which: "linear-probe", a function, or prompts: `(for, against)` of two classes, or a prompt for each class in
            the order of the target's classes, or `{class: prompt}`.
        target: Of two classes or several.
        x: All rows.
        train: Rows to train on; all have a label.
        clip: Embeds the prompts.

    Raises:
        ConfigError: anything else, prompts without a model, or one class among the train rows.
    """
    outputs = outputs_of(target)
    if which == "linear-probe":
        return train_probe(x[train], torch.from_numpy(target.codes[train]), target, outputs)
    if callable(which):
        name = getattr(which, "__name__", type(which).__name__)
        return FunctionClassifier(
            which, outputs, {"classifier": name, "preparation": "in model units, as the store has them"}
        )
    if isinstance(which, str) or not isinstance(which, Sequence | Mapping):
        raise ConfigError(f"classifier={which!r}: give 'linear-probe', a function of rows, prompts, or None.")
    prompts = _prompts(which, target)
    if clip is None:
        raise ConfigError("classifier= is prompts; give clip= too, the model that embeds them.")
    texts = clip.encode_text(list(prompts), normalize=True).double().cpu() * float(clip.logit_scale)
    if texts.shape[1] != x.shape[1]:
        raise ConfigError(
            f"The prompts have width {texts.shape[1]}, the rows {x.shape[1]}. Zero-shot needs the store of image_embed."
        )
    W = texts.T if len(outputs) > 1 else (texts[1] - texts[0])[:, None]
    about = {"classifier": f"zero-shot: {' | '.join(prompts)}", "preparation": "brought to norm 1"}
    return LinearClassifier(W, W.new_zeros(W.shape[1]), outputs, about)


def outputs_of(target: Label) -> tuple[str, ...]:
    """Classes whose probability is followed."""
    return target.classes[1:] if len(target.classes) == 2 else target.classes


def train_probe(
    x: Float[Tensor, "rows d_in"], codes: Int[Tensor, " rows"], target: Label, outputs: tuple[str, ...]
) -> LinearClassifier:
    """Logistic regression on rows of norm 1, each dimension standardised by them; deterministic.

    Raises:
        ConfigError: a class without any train row.
    """
    counts = torch.bincount(codes, minlength=len(target.classes))
    if int(counts.min()) == 0:
        absent = target.classes[int(counts.argmin())]
        raise ConfigError(f"No row to train on is of class {absent!r}. Give more rows, or another split (test=).")
    about = {
        "classifier": "linear-probe",
        "preparation": "brought to norm 1, each dimension standardised by the train rows",
        "penalty": f"½·{L2:g}·‖W‖² beside the summed cross-entropy",
    }
    W, b = _fitted(x, [codes], len(target.classes), FINE)
    return LinearClassifier(W, b, outputs, about)


def shuffled_probes(
    x: Float[Tensor, "rows d_in"],
    codes: Int[Tensor, " rows"],
    target: Label,
    outputs: tuple[str, ...],
    *,
    count: int,
    seed: int,
) -> LinearClassifier:
    """Probes of the same rows with the labels shuffled among them: what fitting alone leans on.

    They are one classifier of `count` × outputs columns, of which `probes` says how many there are.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = [codes[torch.randperm(len(codes), generator=generator)] for _ in range(count)]
    W, b = _fitted(x, shuffled, len(target.classes), ROUGH)
    return LinearClassifier(W, b, outputs * count, {}, probes=count)


def _fitted(x: Tensor, every: Sequence[Tensor], classes: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Weights of a probe for each of the labels, side by side, for rows of norm 1 that are not standardised."""
    unit = F.normalize(x.double(), dim=-1)
    mean, deviation = unit.mean(0), unit.std(0).clamp_min(1e-12)
    features = (unit - mean) / deviation
    each = [logistic(features, codes, classes, l2=L2, tolerance=tolerance) for codes in every]
    W = torch.cat([one for one, _ in each], 1) / deviation[:, None]  # standardising is linear: the weights take it up
    return W, torch.cat([one for _, one in each]) - mean @ W


def logistic(
    features: Float[Tensor, "rows d"], codes: Int[Tensor, " rows"], classes: int, *, l2: float, tolerance: float = FINE
) -> tuple[Float[Tensor, "d columns"], Float[Tensor, " columns"]]:
    """Weights that minimise Σ cross-entropy + ½ l2 ‖W‖²; one column for two classes, one for each of several.

    L-BFGS over all rows in float64, from zero: the same rows give the same weights. The bias is not penalised.
    It ends where no derivative of the loss per row is above `tolerance`.
    """
    columns = 1 if classes == 2 else classes
    rows, width = features.shape
    W = torch.zeros(width, columns, dtype=torch.double, requires_grad=True)
    b = torch.zeros(columns, dtype=torch.double, requires_grad=True)
    target = codes.double() if columns == 1 else codes.long()
    optimiser = torch.optim.LBFGS(
        [W, b], max_iter=_ITERATIONS, tolerance_grad=tolerance, tolerance_change=1e-16, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = features @ W + b
        if columns == 1:
            value = F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="sum")
        else:
            value = F.cross_entropy(logits, target, reduction="sum")
        value = (value + l2 / 2 * W.square().sum()) / rows
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    return W.detach(), b.detach()


def _prompts(which: Sequence[str] | Mapping[str, str], target: Label) -> tuple[str, ...]:
    """One prompt per class, in the order of the codes."""
    if isinstance(which, Mapping):
        plain = {name.removeprefix(f"{target.name}="): name for name in target.classes}
        chosen = {plain.get(str(name), str(name)): str(text) for name, text in which.items()}
        if set(chosen) != set(target.classes):
            raise ConfigError(
                f"classifier= has prompts for {', '.join(map(repr, which))}; the classes of {target.name!r} are "
                f"{', '.join(map(repr, target.classes))}. Give one prompt for each."
            )
        return tuple(chosen[name] for name in target.classes)
    if len(which) != len(target.classes):
        raise ConfigError(
            f"classifier= has {len(which)} prompts for the classes {', '.join(map(repr, target.classes))} of "
            f"{target.name!r}. Give one for each (of a yes/no target: for, against), or a mapping."
        )
    texts = tuple(str(text) for text in which)
    return texts[::-1] if target.kind == "binary" else texts  # the prompt that speaks for it comes first


def _on_cpu(given: Any) -> Any:
    return given.detach().cpu() if isinstance(given, Tensor) else given


def auc(score: Float[np.ndarray, " rows"], positive: Any) -> float:
    """Chance that a positive row scores above a negative one, ties counting half; NaN without either."""
    positive = np.asarray(positive, bool)
    if positive.all() or not positive.any():
        return math.nan
    order = np.unique(score, return_inverse=True)[1]
    inside, outside = (np.bincount(order[side], minlength=order.max() + 1) for side in (positive, ~positive))
    return float(inside @ (np.cumsum(outside) - outside / 2)) / (inside.sum() * outside.sum())
