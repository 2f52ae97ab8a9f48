"""The two small models that are shipped inside the package.

Owns where they lie and how they are opened with the library they belong to (open_clip; the language model's folder
is a Hugging Face one, and finding it does not import open_clip). Hooking them is `load_clip("demo")` and
`load_lm("demo")`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from nb_sae.data.captions import PROMPTS
from nb_sae.errors import InputNotFoundError

CLIP_VOCABULARY = "bpe.txt.gz"
"""Name of the byte-pair vocabulary inside the CLIP's folder."""


def demo_clip_folder() -> Path:
    """The folder of the small CLIP, in open_clip's `local-dir:` form."""
    return _folder("demo_clip", "open_clip_config.json")


def demo_lm_folder() -> Path:
    """The folder of the small language model, in Hugging Face's form."""
    return _folder("demo_lm", "config.json")


def demo_tokenizer(folder: Path | None = None) -> Callable[..., Tensor]:
    """open_clip's tokenizer with the small CLIP's own vocabulary: `list[str]` → `(texts, context)` int64."""
    import open_clip

    where = folder or demo_clip_folder()
    return open_clip.get_tokenizer(f"local-dir:{where}", bpe_path=str(where / CLIP_VOCABULARY))


def demo_clip(folder: Path | None = None) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[..., Tensor]]:
    """The small CLIP: open_clip's model (float32, on the CPU, evaluating), its preprocessing and its tokenizer.

    Args:
        folder: Another folder of the same form; by default the one that is shipped.

    Returns:
        The model, a function from a PIL image to `(3, 64, 64)` float32, and a function from texts to token ids.
    """
    import open_clip

    where = folder or demo_clip_folder()
    opened: Any = open_clip.create_model_from_pretrained(f"local-dir:{where}", precision="fp32", device="cpu")
    model, preprocess = opened
    return model.eval(), preprocess, demo_tokenizer(where)


def demo_clip_config(folder: Path | None = None) -> dict[str, Any]:
    """What `open_clip_config.json` holds: `model_cfg` and `preprocess_cfg`."""
    where = folder or demo_clip_folder()
    return json.loads((where / "open_clip_config.json").read_text(encoding="utf-8"))


@torch.no_grad()
def zero_shot_table(
    model: nn.Module, tokenizer: Callable[..., Tensor], image_embeddings: Tensor, attributes: pl.DataFrame
) -> pl.DataFrame:
    """How well a CLIP tells every drawn attribute from the prompts of `PROMPTS` alone.

    The score of a face is cos(image, positive prompt) − cos(image, negative prompt).

    Args:
        model: An open_clip model.
        tokenizer: Its tokenizer.
        image_embeddings: `(faces, width)`, normalised or not.
        attributes: One Boolean column per attribute, in the same order.

    Returns:
        `attribute, auc, positives, faces`, worst first; `auc` is null where all faces agree.
    """
    images = nn.functional.normalize(image_embeddings.float(), dim=-1)
    names = [name for name in PROMPTS if name in attributes.columns]
    texts = [prompt for name in names for prompt in PROMPTS[name]]
    text = nn.functional.normalize(model.encode_text(tokenizer(texts)).float(), dim=-1)  # pyright: ignore[reportCallIssue]
    pairs = text.view(len(names), 2, -1)
    scores = (images @ (pairs[:, 0] - pairs[:, 1]).T).numpy()
    rows = []
    for column, name in enumerate(names):
        truth = attributes[name].to_numpy().astype(bool)
        rows.append((name, roc_auc(scores[:, column], truth), int(truth.sum()), len(truth)))
    table = pl.DataFrame(rows, schema=["attribute", "auc", "positives", "faces"], orient="row", strict=False)
    return table.with_columns(pl.col("auc").cast(pl.Float64)).sort("auc")


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative (ties count half); None where one of the two is missing."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def retrieval_at(image_embeddings: Tensor, text_embeddings: Tensor, k: Sequence[int] = (1, 10)) -> dict[int, float]:
    """Fraction of images whose own text is among the `k` nearest texts; row i of both belongs together."""
    images = nn.functional.normalize(image_embeddings.float(), dim=-1)
    similarity = images @ nn.functional.normalize(text_embeddings.float(), dim=-1).T
    # A tie counts against the own text, so that embeddings that are all the same find nothing.
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1) - 1
    return {at: float((rank < at).float().mean()) for at in k}


def _folder(name: str, needed: str) -> Path:
    folder = Path(str(files("nb_sae") / "assets" / name))
    if not (folder / needed).is_file():
        raise InputNotFoundError(
            f"The package holds no {name!r} ({needed} is missing in nb_sae/assets/{name}). "
            "Install nb-sae again, or train it with the script of the same name in scripts/."
        )
    return folder
