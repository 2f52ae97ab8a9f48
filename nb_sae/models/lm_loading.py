"""Finding and loading a Hugging Face language model with its tokenizer: by name or from a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nb_sae.errors import ConfigError, InputNotFoundError, closest

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def pretrained(source: str, *, dtype: torch.dtype) -> nn.Module:
    """A Hugging Face model by name or folder, with the head it was saved with.

    Raises:
        ConfigError: an encoder-decoder.
        InputNotFoundError: nothing there that can be loaded, or no network to download from.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _not_loaded(source, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{source!r} is an encoder-decoder; expected a decoder or an encoder. Load it with transformers and give "
            "one half: load_lm(model.get_encoder(), tokenizer=…)."
        )
    kinds = " ".join(getattr(config, "architectures", None) or ())
    if "CausalLM" in kinds or "LMHead" in kinds:
        loader = transformers.AutoModelForCausalLM
    else:
        loader = transformers.AutoModelForMaskedLM if "MaskedLM" in kinds else transformers.AutoModel
    try:
        with _quiet_loading():
            return loader.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_loaded(source, error) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' bar for reading weights from disk, which stays in executed notebooks and says nothing."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def tokenizer_of(source: Any) -> Any:
    """The tokenizer of a folder or name; a tokenizer as it is. Raises `InputNotFoundError`."""
    if not isinstance(source, str | Path):
        return source
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(f"the tokenizer of {source}", error) from error


def _not_loaded(source: str, error: Exception) -> InputNotFoundError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputNotFoundError(
        f"{source!r} could not be loaded: {reason[:400].rstrip('.')}. Expected a Hugging Face name or a folder with "
        "config.json, weights and tokenizer files. Without a network give such a folder, load_lm('path/to/folder'), "
        "or run once with a network, after which the download is kept in the Hugging Face cache (HF_HOME)."
    )


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype:
    """The precision asked for, float32 by default. Raises `ConfigError` for an unknown name."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    name = dtype.removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown. {closest(name, _DTYPES)}Choose fp32, bf16 or fp16.")
    return _DTYPES[name]
