"""Texts as tokens: cutting them for a model in a worker process, and showing token ids to a reader.

Nothing here holds weights; everything can be sent to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nb_sae.errors import ConfigError, InputError
from nb_sae.types import Prepared

PADDING = -1
"""Marks padding in prepared ids, whatever the vocabulary says; see `WindowPreprocessor`."""


@dataclass(frozen=True)
class WindowPreprocessor:
    """Cut a text into windows of a language model, each with the special tokens the tokenizer itself would add.

    The ids are `(contexts, positions)`. Padding is −1, not a token: the model wrapper makes the attention mask from
    it, so the ids are all that has to be stored or sent.
    """

    tokenizer: Any
    positions: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_ids: frozenset[int]

    def __call__(self, text: str) -> Prepared:
        """Raises `InputError` for what is no text, and for a text without a single token."""
        if not isinstance(text, str):
            raise InputError(f"Got a {type(text).__name__}; expected a text. Give a str.")
        ids = plain_ids(self.tokenizer, text)
        if not ids:
            raise InputError("The text has no tokens; expected at least one. Leave empty texts out.")
        body = self.positions - len(self.prefix) - len(self.suffix)
        windows = [[*self.prefix, *ids[i : i + body], *self.suffix] for i in range(0, len(ids), body)]
        tensor = torch.full((len(windows), self.positions), PADDING)
        special = torch.ones(tensor.shape, dtype=torch.bool)
        for row, window in enumerate(windows):
            tensor[row, : len(window)] = torch.tensor(window)
            special[row, : len(window)] = torch.tensor([token in self.special_ids for token in window])
            special[row, : len(self.prefix)] = True
            special[row, len(window) - len(self.suffix) : len(window)] = True
        return Prepared(tensor, keep=tensor != PADDING, special=special)


def window_preprocessor(tokenizer: Any, positions: int) -> WindowPreprocessor:
    """Ask the tokenizer once what it adds around a text.

    Raises:
        ConfigError: A window has no room for a token beside the special ones.
    """
    prefix, suffix = _added_around(tokenizer)
    if positions <= len(prefix) + len(suffix):
        raise ConfigError(
            f"context_tokens={positions} leaves no room beside the {len(prefix) + len(suffix)} special tokens that "
            f"the tokenizer adds; expected at least {len(prefix) + len(suffix) + 1}. Raise context_tokens."
        )
    return WindowPreprocessor(tokenizer, positions, prefix, suffix, special_ids(tokenizer))


@dataclass(frozen=True)
class CaptionPreprocessor:
    """One text as the one context of a CLIP text tower, cut by the tokenizer if it is longer.

    Kept are the tokens up to the first end mark; special are the start mark, the end mark and padding. Padding is −1
    in the ids, as a language model's is (CLIP's own padding id is a word); the model wrapper puts its own id back.
    """

    tokenizer: Callable[[list[str]], Tensor]
    end_id: int | None
    padding_id: int | None
    special_ids: frozenset[int]

    def __call__(self, text: str) -> Prepared:
        """Raises `InputError` for what is no text."""
        if not isinstance(text, str):
            raise InputError(f"Got a {type(text).__name__}; expected a text. Give a str.")
        ids = torch.as_tensor(self.tokenizer([encodable(text)]))
        if ids.ndim != 2 or len(ids) != 1:
            raise ConfigError(
                f"The tokenizer gave {tuple(ids.shape)} for one text; expected (1, positions). "
                "Pass tokenizer= a function from a list of texts to a tensor of token ids."
            )
        return self.of_ids(ids)

    def of_ids(self, ids: Tensor) -> Prepared:
        """The same of `(text, position)` ids, as the tokenizer gives them or with −1 on padding."""
        keep = self._kept(ids)
        marks = torch.tensor(sorted(self.special_ids), dtype=ids.dtype, device=ids.device)
        special = torch.isin(ids, marks) | ~keep
        shown = ids if self.padding_id is None else ids.masked_fill(~keep & (ids == self.padding_id), PADDING)
        return Prepared(shown, keep=keep, special=special)

    def _kept(self, ids: Tensor) -> Tensor:
        padding = (ids == PADDING) | (ids == (PADDING if self.padding_id is None else self.padding_id))
        keep = (~padding).int().flip(1).cumsum(1).flip(1) > 0
        if self.end_id is None:
            return keep
        ends = ids == self.end_id
        up_to_end = torch.arange(ids.shape[1], device=ids.device) <= ends.int().argmax(dim=1, keepdim=True)
        return torch.where(ends.any(dim=1, keepdim=True), up_to_end, keep)


def caption_preprocessor(tokenizer: Callable[[list[str]], Tensor]) -> CaptionPreprocessor:
    """Read the start, end and padding marks off an open_clip tokenizer, or a Hugging Face one inside it."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    end, start = getattr(tokenizer, "eot_token_id", None), getattr(tokenizer, "sot_token_id", None)
    padding: int | None = 0 if end is not None else None
    if end is None:
        start = getattr(inner, "bos_token_id", None)
        end = _first_known(getattr(inner, "sep_token_id", None), getattr(inner, "eos_token_id", None))
        padding = getattr(inner, "pad_token_id", None)
    marks = {mark for mark in (start, end) if mark is not None}
    return CaptionPreprocessor(tokenizer, end, padding, special_ids(inner) | marks)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without anything added."""
    return list(_encode(tokenizer, encodable(text), add_special_tokens=False))


def check_vocabulary(ids: Tensor, size: object) -> None:
    """Raise `InputError` for ids that a model has no embedding for; on a GPU they would take the process down."""
    if not ids.numel():
        return
    least, most = int(ids.min()), int(ids.max())
    if isinstance(size, int) and most >= size:
        raise InputError(
            f"Token id {most} is outside the model's vocabulary of {size}: the texts were prepared with the tokenizer "
            "of another model. Load the model with its own tokenizer=."
        )
    if least < PADDING:
        raise InputError(f"Token id {least} is negative; expected ids from 0 on, {PADDING} on padding. Give other ids.")


def encodable(text: str) -> str:
    """The text with lone surrogates replaced by `?`: no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that the tokenizer calls special."""
    return frozenset(int(token) for token in getattr(tokenizer, "all_special_ids", None) or () if token is not None)


def token_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token as a reader sees it; never raises.

    Byte-level pieces are decoded, bytes that are no text by themselves are shown as `<0xE2>`; marks for a word's
    beginning become a space; padding (−1) is empty; an id outside the vocabulary is shown as `<id 123>`.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    spell = _spelling(inner)
    literal = _literal_tokens(inner)
    return [_show(int(token), spell, literal) for token in ids]


def _show(token: int, spell: Callable[[int], str | None], literal: dict[int, str]) -> str:
    if token < 0:
        return ""
    if token in literal:
        return literal[token]
    try:
        text = spell(token)
    except Exception:
        # A reader is better served by a number than by no page at all; tokenizers raise all kinds of errors here.
        text = None
    return f"<id {token}>" if text is None else text


def _spelling(tokenizer: Any) -> Callable[[int], str | None]:
    if hasattr(tokenizer, "byte_decoder") and hasattr(tokenizer, "decoder"):  # open_clip's own, and slow BPE ones
        bytes_of, pieces = tokenizer.byte_decoder, tokenizer.decoder
        return lambda token: _piece_text(pieces.get(token), bytes_of)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        decode = getattr(tokenizer, "decode", None)
        return lambda token: decode([token]) if decode is not None else None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "ByteLevel" in repr(getattr(backend, "decoder", "")) or "ByteLevel" in repr(
        getattr(backend, "pre_tokenizer", "")
    ):
        bytes_of = _byte_alphabet()
        return lambda token: _piece_text(tokenizer.convert_ids_to_tokens(token), bytes_of)
    word_pieces = "WordPiece" in repr(getattr(backend, "decoder", ""))
    return lambda token: _word_text(tokenizer.convert_ids_to_tokens(token), word_pieces=word_pieces)


def _piece_text(piece: str | None, bytes_of: dict[str, int]) -> str | None:
    if piece is None:
        return None
    ending = piece.endswith("</w>")
    piece = piece.removesuffix("</w>")
    if not all(letter in bytes_of for letter in piece):
        return piece
    raw = bytes(bytes_of[letter] for letter in piece)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in raw)
    return text + " " if ending else text


def _word_text(piece: str | None, *, word_pieces: bool) -> str | None:
    if piece is None or not word_pieces:
        return piece if piece is None else piece.replace("▁", " ")
    return piece[2:] if piece.startswith("##") else f" {piece}"


def _literal_tokens(tokenizer: Any) -> dict[int, str]:
    """Added and special tokens: shown as they are spelled, not as bytes."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if isinstance(added, dict):
        return {int(token): str(getattr(entry, "content", entry)) for token, entry in added.items()}
    pieces = getattr(tokenizer, "decoder", None)
    if isinstance(pieces, dict):
        return {token: pieces[token] for token in special_ids(tokenizer) if token in pieces}
    return {}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes, inverted: printable Latin-1 stands for itself, the rest start at U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _added_around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids that the tokenizer puts before and after a text."""
    plain = plain_ids(tokenizer, "a")
    full = list(_encode(tokenizer, "a", add_special_tokens=True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> Sequence[int]:
    try:
        return tokenizer(text, add_special_tokens=add_special_tokens, truncation=False, verbose=False)["input_ids"]
    except TypeError:
        # Not a Hugging Face tokenizer: `encode(text)` adds nothing of its own in open_clip's and in many others.
        encoded = tokenizer.encode(text)
        return getattr(encoded, "ids", encoded)


def _first_known(*ids: int | None) -> int | None:
    return next((token for token in ids if token is not None), None)
