"""The demo language model's MODEL_CARD.md, with what it is compared to."""

from __future__ import annotations

import argparse
import lzma
import math
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from demo_lm_corpus import Corpus

from nb_sae.data.docstrings import HELD_OUT_ONE_IN, Document


class Progress(Protocol):
    """How far training came."""

    steps: int
    tokens: int
    seconds: float
    loss: float


@dataclass
class Measured:
    """Everything that the card states."""

    bits: dict[str, float]
    baselines: dict[str, dict[str, float]]
    progress: Progress
    args: argparse.Namespace
    parameters: int
    corpus_tokens: int


def measure_baselines(corpus: Corpus) -> dict[str, dict[str, float]]:
    """Bits per byte of the held-out text without a language model."""
    counts = Counter(b"".join(document.text.encode() for document in corpus.train))
    return {part: _baselines(documents, counts) for part, documents in corpus.held_out_parts().items()}


def _baselines(documents: list[Document], counts: Counter[int]) -> dict[str, float]:
    text = "\n\n".join(document.text for document in documents).encode()
    total = sum(counts.values()) + 256
    unigram = -sum(n * math.log2((counts[byte] + 1) / total) for byte, n in Counter(text).items())
    return {
        "byte unigram (fitted on the training text)": unigram / len(text),
        "zlib, level 9, all held-out text at once": 8 * len(zlib.compress(text, 9)) / len(text),
        "LZMA, preset 9e, all held-out text at once": 8
        * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
        / len(text),
    }


def write_card(folder: Path, corpus: Corpus, measured: Measured) -> None:
    args, progress = measured.args, measured.progress
    held_out_bytes = sum(len(document.text.encode()) for document in corpus.held_out)
    card = f"""# Demo language model

A small causal language model that nb_sae carries so that its tutorials run offline. It knows the English of Python
documentation and nothing else. It is for trying the tools on, not for use as a language model.

## Model

GPT-NeoX architecture (`GPTNeoXForCausalLM`): {args.layers} layers, width {args.width}, {args.heads} heads, context 128
tokens, tied embeddings, {measured.parameters:,} parameters, stored in half precision. Byte-level BPE with
{args.vocabulary:,} tokens; `<|endoftext|>` (id 0) is BOS, EOS and padding.

## Held-out text

Bits per byte, lower is better. Each held-out document is read on its own, in contexts of 127 tokens after a BOS token;
the compressors see all documents at once.

| | all sources | standard library |
|---|---|---|
"""
    card += f"| **this model** | **{measured.bits['all']:.3f}** | **{measured.bits['standard library']:.3f}** |\n"
    for name, value in measured.baselines["all"].items():
        card += f"| {name} | {value:.3f} | {measured.baselines['standard library'][name]:.3f} |\n"
    card += f"""
## Training

{progress.steps:,} steps of {args.batch} contexts, {progress.tokens:,} tokens
({progress.tokens / measured.corpus_tokens:.1f} passes over {measured.corpus_tokens:,} tokens). AdamW, learning rate
{args.learning_rate:g} with a warm-up of 200 steps and linear decay to zero, {args.precision} autocast,
seed {args.seed}; {progress.seconds / 60:.0f} minutes on one core of a busy CPU. Final training loss
{progress.loss:.3f} nats per token. To train it again:
`python scripts/train_demo_lm.py --seed {args.seed} --steps {progress.steps}`.

## Data

{len(corpus.train):,} training documents ({corpus.train_bytes:,} bytes) and {len(corpus.held_out):,} held-out documents
({held_out_bytes:,} bytes): docstrings of the standard library and of the packages that nb_sae depends on, their `.rst`,
`.md` and `.txt` documentation and package descriptions, and the language reference inside `pydoc_data`. Files were
parsed, not run. Code, tables, doctests, lines that are not English prose, and mail addresses were removed, and wrapped
lines joined. A document is held out when a hash of its words says so (one in {HELD_OUT_ONE_IN},
`nb_sae.data.docstrings.is_held_out`). A line of 30 characters or more is kept only once over the whole corpus, held-out
documents first, so that no such line of a held-out document was trained on. (The standard-library column reads held-out
docstrings whole, as `demo_texts(part="held-out")` gives them.)

The text belongs to the authors of these packages and was read from an ordinary installation under each package's
licence, as its metadata states it below. The weights hold statistics of that text; the text itself is not shipped.

| source | version | licence | documents | bytes |
|---|---|---|---|---|
"""
    for source in corpus.sources:
        card += f"| {source.name} | {source.version} | {source.license} | {source.documents:,} | {source.bytes:,} |\n"
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
