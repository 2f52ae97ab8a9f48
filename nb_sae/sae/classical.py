"""Classical dictionaries as baselines: PCA, ICA, NMF, random directions and, for transcoders, linear maps.

They have the `encode`, `decode` and `check` of a `Dictionary`, so they stand in the same tables. Codes may be negative,
where a dictionary has one-sided latents: k codes of a baseline say at least as much as k latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, MissingDependencyError, NonFiniteError, ShapeError, StoreError
from nb_sae.sae.decoder import LinearDecoder
from nb_sae.sae.metrics.rows import CHUNK_ROWS, Rows, check_finite, chunks_of, chunks_with_targets
from nb_sae.types import ActivationSource

FIT_ROWS = 20_000
"""Rows that scikit-learn is given: it holds them in memory."""
GRAM_LATENTS = 8192
"""Up to here the random dictionary holds all its inner products, which makes the pursuit cheap."""

Selection = Literal["first", "largest"]


class Baseline(LinearDecoder):
    """Directions with a rule that finds their codes: x̂ = codes W_dec + b_dec. Rows of `W_dec` have norm 1.

    Args:
        name: Shown in tables.
        W_dec: `(d_sae, d_out)`; brought to unit rows.
        b_dec: `(d_out,)`.
        codes: From rows `(rows, d_in)` less `centre` to `(codes (rows, k), latent numbers (rows, k))` for a given k,
            such that the first k' are those of a smaller k'.
        centre: `(d_in,)`; None: `b_dec`, of rows that are reconstructed themselves.
        target: Site whose rows are reconstructed; None: the site that is read.
        about: How it was made.
    """

    def __init__(
        self,
        name: str,
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        codes: Callable[[Tensor, int], tuple[Tensor, Tensor]],
        *,
        centre: Float[Tensor, " d_in"] | None = None,
        site: str | None = None,
        target: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.W_dec = F.normalize(W_dec.float(), dim=-1)
        self.b_dec = b_dec.float()
        self.centre = self.b_dec if centre is None else centre.float()
        self.site = site
        self.target = target
        self.about = about or {}
        self._codes = codes

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return len(self.centre)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"], k: int | None = None, sparse: bool = False) -> Any:
        """Codes of rows: the k that the rule chooses, dense or as `(codes, latent numbers)`; None: all of them.

        Raises:
            ShapeError: rows of another width.
            ConfigError: k outside [1, d_sae].
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ShapeError(f"Rows of shape {tuple(x.shape)} were given; {self.name} takes (rows, {self.d_in}).")
        k = self.d_sae if k is None else k
        if not 1 <= k <= self.d_sae:
            raise ConfigError(f"k={k} is outside [1, {self.d_sae}], the number of directions of {self.name}.")
        values, indices = self._codes(x.to(self.device, torch.float32) - self.centre, k)
        if sparse:
            return values, indices
        return torch.zeros(len(x), self.d_sae, device=self.device).scatter(-1, indices, values)

    def check(self, source: ActivationSource) -> None:
        """Refuse rows of another width or site. Raises `StoreError`."""
        if source.d_in != self.d_in or (self.site is not None and source.site.name != self.site):
            raise StoreError(
                f"The rows have width {source.d_in} and come from {source.site.name!r}; {self.name} was fitted to "
                f"width {self.d_in} of {self.site!r}. Fit it to rows of the same site."
            )

    def __repr__(self) -> str:
        return f"Baseline({self.name!r}: {self.d_sae:,} directions of width {self.d_in})"


@torch.no_grad()
def pca(rows: Rows) -> Baseline:
    """Principal components; k means the first k, whatever the row. In one pass over all rows, in float64.

    No linear code with k numbers, the same k directions for every row, has a lower squared error on these rows.

    Raises:
        StoreError: all rows are equal.
        NonFiniteError: NaN or infinity in the rows.
    """
    count, mean, covariance = _moments(chunks_of(rows))
    if not covariance.diagonal().sum() > 0:
        raise StoreError("All rows are equal, so there is no principal component. Collect other rows.")
    variance, basis = torch.linalg.eigh(covariance)
    W_dec = basis.flip(-1).T.float()
    order = torch.arange(len(W_dec))

    def codes(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return x @ W_dec[:k].T, order[:k].expand(len(x), k)

    about = {"fit_rows": count, "explained_variance": variance.flip(0).clamp_min(0).tolist()}
    return Baseline("PCA", W_dec, mean.float(), codes, site=_site(rows), about=about)


@torch.no_grad()
def linear_map(pairs: ActivationSource) -> Baseline:
    """Linear maps from x to y of every rank; k means the best of rank k. What a transcoder is read against.

    No linear map that passes k numbers on has a lower squared error on these rows. In one pass, in float64.

    Args:
        pairs: `ns.pair(x, y)`.

    Raises:
        StoreError: no pairs, or all rows of a side are equal.
        NonFiniteError: NaN or infinity in the rows.

    Source:
        Izenman 1975, Reduced-rank regression for the multivariate linear model (with equal weights).
    """
    target: ActivationSource | None = getattr(pairs, "target", None)
    if target is None:
        raise StoreError("A linear map needs the rows of two sites. Give ns.pair(x, y).")
    width = pairs.d_in
    chunks = chunks_with_targets(pairs, target, CHUNK_ROWS)
    count, mean, covariance = _moments(torch.cat(both, dim=1) for both in chunks)
    mean, variance = mean.float(), covariance.diagonal()
    if not (variance[:width].sum() > 0 and variance[width:].sum() > 0):
        raise StoreError("All rows of one side are equal, so there is nothing to map. Collect other rows.")
    across = covariance[:width, width:]
    # Directions whose variance is rounding of float32 say nothing.
    regression = torch.linalg.pinv(covariance[:width, :width], rtol=1e-12, hermitian=True) @ across
    rank = min(across.shape)
    directions = torch.linalg.eigh(across.T @ regression).eigenvectors.flip(-1)[:, :rank]
    reads, order = (regression @ directions).float(), torch.arange(rank)

    def codes(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return x @ reads[:, :k], order[:k].expand(len(x), k)

    sites = {"site": _site(pairs), "target": _site(target)}
    return Baseline(
        "linear map", directions.T, mean[width:], codes, centre=mean[:width], about={"fit_rows": count}, **sites
    )


def ica(
    rows: Rows,
    components: int | None = None,
    *,
    contrast: Literal["logcosh", "exp", "cube"] = "logcosh",
    fit_rows: int = FIT_ROWS,
    iterations: int = 500,
    seed: int = 0,
) -> Baseline:
    """Independent components (FastICA); k means the k largest |codes|, measured along unit directions.

    Args:
        rows: `(rows, d_in)` or a store.
        components: How many, at most d_in; None: d_in.
        contrast: What measures independence. "cube" finds one-sided, very skewed sources where "logcosh" converges to
            rotations of them; "logcosh" is the steadier one otherwise.
        fit_rows: Rows drawn for the fit; they are held in memory.
        iterations: At most. `about["converged"]` says whether they were enough.
        seed: Of the drawn rows and of the start.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        ConfigError: more components than dimensions.

    Source:
        Hyvärinen & Oja 2000, Independent component analysis; `sklearn.decomposition.FastICA`.
    """
    x = _drawn(rows, fit_rows, seed)
    components = _check_components(components, x, "ICA")
    model = _sklearn("ICA").FastICA(
        n_components=components,
        whiten="unit-variance",
        fun=contrast,
        max_iter=iterations,
        random_state=seed,
        tol=1e-3,
    )
    _quietly(model.fit, x)
    mixing, unmixing = (torch.as_tensor(one, dtype=torch.float32) for one in (model.mixing_.T, model.components_))
    if not (torch.isfinite(mixing).all() and torch.isfinite(unmixing).all()):
        raise NonFiniteError(
            f"ICA with {components} components gave NaN: the rows fill fewer dimensions. Ask for fewer components."
        )
    norm = mixing.norm(dim=-1)

    def codes(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return _largest((z @ unmixing.T) * norm, k)

    about = {"fit_rows": len(x), "contrast": contrast, "iterations": int(model.n_iter_)}
    about["converged"] = int(model.n_iter_) < iterations
    mean = torch.as_tensor(model.mean_, dtype=torch.float32)
    return Baseline("ICA", mixing, mean, codes, site=_site(rows), about=about)


def nmf(
    rows: Rows,
    components: int | None = None,
    *,
    shift: Literal["minimum"] | None = None,
    fit_rows: int = FIT_ROWS,
    iterations: int = 300,
    seed: int = 0,
) -> Baseline:
    """Non-negative matrix factorisation; k means the k largest codes.

    Args:
        rows: `(rows, d_in)` or a store.
        components: How many; None: d_in.
        shift: NMF takes no negative number. None refuses rows that hold one; "minimum" takes the smallest value of
            each column off first, which is then `b_dec`. A row below it later counts as 0 there.
        fit_rows: Rows drawn for the fit; they are held in memory.
        iterations: At most, for the fit and for each encoding.
        seed: Of the drawn rows and of the start.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        ConfigError: negative values without a shift.

    Source:
        Lee & Seung 1999, Learning the parts of objects by non-negative matrix factorization;
        `sklearn.decomposition.NMF` (coordinate descent).
    """
    x = _drawn(rows, fit_rows, seed)
    components = _check_components(components, x, "NMF", more=True)
    if shift not in (None, "minimum"):
        raise ConfigError(f"shift={shift!r}: use None or 'minimum'.")
    if shift is None and x.min() < 0:
        raise ConfigError(
            f"The rows hold negative values (the smallest is {x.min():.3g}), which NMF cannot factor. Pass "
            "shift='minimum' to take the smallest value of each column off first."
        )
    base = x.min(0) if shift else np.zeros(x.shape[1], dtype=x.dtype)
    # Not "nndsvda", scikit-learn's default: on shifted rows it met the tolerance after two iterations at an FVU of 0.9.
    model = _sklearn("NMF").NMF(
        n_components=components, init="random", max_iter=iterations, random_state=seed, tol=1e-4
    )
    _quietly(model.fit, x - base)
    directions = torch.as_tensor(model.components_, dtype=torch.float32)
    norm = directions.norm(dim=-1)
    kept = norm > 0  # a component that the fit emptied has no direction

    def codes(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        found = _quietly(model.transform, z.clamp_min(0).cpu().numpy().astype(x.dtype))
        return _largest((torch.as_tensor(found, dtype=torch.float32) * norm)[:, kept], k)

    left, spread = float(model.reconstruction_err_) ** 2, float(np.square(x - x.mean(0), dtype=np.float64).sum())
    about = {"fit_rows": len(x), "iterations": int(model.n_iter_), "shift": shift, "fit_fvu": left / spread}
    about["converged"] = int(model.n_iter_) < iterations
    b_dec = torch.as_tensor(base, dtype=torch.float32)
    return Baseline("NMF", directions[kept], b_dec, codes, site=_site(rows), about=about)


def random(rows: Rows, d_sae: int, *, seed: int = 0) -> Baseline:
    """Random unit directions about the mean of the rows: what a dictionary of this size gives without learning.

    Codes come from matching pursuit: k times the direction nearest to what is left, each direction once. That is far
    better than the k largest inner products, so the baseline is not a straw man.

    Args:
        rows: Their mean is `b_dec`.
        d_sae: Number of directions.
        seed: Of the directions.

    Source:
        Mallat & Zhang 1993, Matching pursuits with time-frequency dictionaries.
    """
    if d_sae < 1:
        raise ConfigError(f"d_sae={d_sae} is not a number of directions. Give d_sae ≥ 1.")
    count, total = 0, torch.zeros(())
    for part in chunks_of(rows):
        total = total + part.cpu().double().sum(0)
        count += len(part)
    mean = (total / count).float()
    W_dec = F.normalize(torch.randn(d_sae, len(mean), generator=torch.Generator().manual_seed(seed)), dim=-1)
    gram = W_dec @ W_dec.T if d_sae <= GRAM_LATENTS else None

    def codes(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return _pursuit(z, W_dec, gram, k)

    return Baseline("random", W_dec, mean, codes, site=_site(rows), about={"seed": seed})


def _pursuit(z: Tensor, W_dec: Tensor, gram: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    inner = z @ W_dec.T
    free = torch.ones_like(inner)
    values, indices = [], []
    for _ in range(k):
        index = (inner.abs() * free - (1 - free)).argmax(-1, keepdim=True)
        value = inner.gather(-1, index)
        free.scatter_(-1, index, 0.0)
        nearest = index[:, 0]
        inner = inner - value * (gram[nearest] if gram is not None else W_dec[nearest] @ W_dec.T)
        values.append(value)
        indices.append(index)
    return torch.cat(values, -1), torch.cat(indices, -1)


def _moments(parts: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Number, mean and covariance of rows that come in chunks, float64."""
    count, total, square, shift = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for part in parts:
        x = part.cpu().double()
        if not count:
            shift = x.mean(0)  # near the mean, so that a large mean does not drown the variance
            total, square = torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=torch.double)
        x = x - shift
        count += len(x)
        total += x.sum(0)
        square += x.T @ x
    return count, shift + total / count, square / count - torch.outer(total / count, total / count)


def _largest(codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    indices = codes.abs().topk(min(k, codes.shape[1]), dim=-1).indices
    return codes.gather(-1, indices), indices


def _drawn(rows: Rows, count: int, seed: int) -> np.ndarray:
    """At most `count` rows, drawn without replacement, float32."""
    if count < 2:
        raise ConfigError(f"fit_rows={count} must be at least 2.")
    if isinstance(rows, Tensor) and (rows.ndim != 2 or not len(rows)):
        raise ShapeError(f"Rows of shape {tuple(rows.shape)} were given; expected (rows, d_in) with at least one.")
    total = len(rows)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    x = rows[chosen if isinstance(rows, Tensor) else chosen.numpy()].cpu().float()
    check_finite(x)
    if (x == x[0]).all():
        raise StoreError("All rows are equal, so there is nothing to factor. Collect other rows.")
    return x.numpy()


def _check_components(components: int | None, x: np.ndarray, name: str, *, more: bool = False) -> int:
    rows, d_in = x.shape
    most = rows if more else min(rows, d_in)
    wanted = min(d_in, most) if components is None else components
    if not 1 <= wanted <= most:
        raise ConfigError(f"components={wanted} for {name} on {rows} rows of width {d_in}; expected 1 to {most}.")
    return wanted


def _sklearn(needed_for: str) -> ModuleType:
    try:
        return import_module("sklearn.decomposition")
    except ImportError as error:
        raise MissingDependencyError(
            f"{needed_for} needs 'scikit-learn', which cannot be imported ({error}). "
            'Run: pip install "nb_sae[baselines]"'
        ) from error


def _quietly(call: Callable[..., Any], *args: Any) -> Any:
    """Without the warning that a solver stopped early: `about` says how many iterations it took."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=import_module("sklearn.exceptions").ConvergenceWarning)
        return call(*args)


def _site(rows: Rows) -> str | None:
    return None if isinstance(rows, Tensor) else rows.site.name
