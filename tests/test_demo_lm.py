"""The language model inside the package loads offline, agrees with itself and knows its language."""

from __future__ import annotations

import json
import lzma
import math
import os
import re
import zlib
from collections import Counter
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nb_sae
from nb_sae.data import docstrings
from nb_sae.data.texts import demo_texts

FOLDER = Path(nb_sae.__file__).parent / "assets" / "demo_lm"
CONTEXT = 128
UNICODE = (
    "Return the café, cafe\u0301, naïve 中文, עברית, 😀, \u202eright-to-left\u202c text;\n\t  two  spaces. <|endof"
)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(str(FOLDER), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(FOLDER))


@pytest.fixture(scope="module")
def held_out():
    return list(demo_texts(120, seed=0, part="held-out"))


@pytest.fixture(scope="module")
def reached(model, tokenizer, held_out) -> float:
    return bits_per_byte(model, tokenizer, held_out)


@torch.inference_mode()
def bits_per_byte(model, tokenizer, texts, context: int = CONTEXT) -> float:
    """Mean over all bytes, one text at a time, in contexts of `context - 1` tokens after a BOS."""
    nats = 0.0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for first in range(0, len(ids), context - 1):
            row = torch.tensor([[tokenizer.bos_token_id, *ids[first : first + context - 1]]])
            logits = model(input_ids=row).logits[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_demo_lm_needs_far_fewer_bits_than_compressors_on_held_out_text(held_out, reached):
    text = "\n\n".join(held_out).encode()
    unigram = -sum(n * math.log2(n / len(text)) for n in Counter(text).values()) / len(text)
    zipped = 8 * len(zlib.compress(text, 9)) / len(text)
    squeezed = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    print(f"bits per byte: model {reached:.3f}, byte unigram {unigram:.3f}, zlib {zipped:.3f}, lzma {squeezed:.3f}")
    assert reached < 0.6 * min(zipped, squeezed)
    assert reached < 0.4 * unigram


def test_demo_lm_card_states_what_the_files_reach(model, reached):
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    stated = [float(number) for number in re.search(r"this model.*", card).group().replace("*", "").split("|")[1:3]]
    assert stated[1] == pytest.approx(reached, abs=0.12)  # this sample is a part of what the card is about
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in card
    assert "seed 0" in card
    assert "licence" in card


def test_demo_lm_knows_more_the_more_it_has_read(model, tokenizer, held_out, reached):
    long = [text for text in held_out if len(text) > 400][:20]
    assert bits_per_byte(model, tokenizer, long) < 0.9 * bits_per_byte(model, tokenizer, long, context=9)


def test_demo_lm_in_transformer_lens_gives_the_same_logits(model, tokenizer):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(FOLDER), device="cpu")
    texts = [text for text in demo_texts(60, seed=1) if len(text) > 200]
    tokens = torch.tensor([[0, *tokenizer(text)["input_ids"][:20]] for text in texts])
    with torch.inference_mode():
        logits, cache = bridge.run_with_cache(tokens)
        output = model(input_ids=tokens, output_hidden_states=True)
    torch.testing.assert_close(logits, output.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(cache["blocks.1.hook_resid_post"], output.hidden_states[2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", [UNICODE, "", " ", "\x00\x7f", "<img onerror=1>", "\u3000\U0010ffff"])
def test_demo_lm_tokenizer_gives_every_text_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(0 < number < len(tokenizer) for number in ids)


def test_demo_lm_tokenizer_has_one_special_token_and_cuts_english_into_words(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.convert_ids_to_tokens(tokenizer("Return the list of items.")["input_ids"])[:3] == [
        "Return",
        "Ġthe",
        "Ġlist",
    ]
    assert 2000 <= len(tokenizer) <= 4096


def test_demo_lm_generates_finite_text(model, tokenizer):
    inputs = tokenizer("Return the", return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=9, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert torch.stack(output.logits).isfinite().all()
    assert tokenizer.decode(output.sequences[0]).startswith("Return the ")


def test_demo_lm_folder_is_small_and_names_no_place():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 9_000_000
    assert {path.name for path in files} == {
        "MODEL_CARD.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in files:
        text = path.read_bytes()
        assert b"/home/" not in text
        assert b"/root/" not in text
        assert b"name_or_path" not in text
        if path.suffix == ".json":
            json.loads(text)


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(nb_sae.__file__).parents[1] / "scripts"))


def test_training_script_writes_a_folder_that_loads_and_its_card(tmp_path, monkeypatch, capsys, scripts):
    import demo_lm_corpus
    import train_demo_lm

    source = demo_lm_corpus.Source("Python standard library", "3", "PSF-2.0", documents=300)
    documents = docstrings.standard_library()[:300]
    held_out = [document for document in documents if docstrings.is_held_out(document.text)]
    train = [document for document in documents if not docstrings.is_held_out(document.text)]
    corpus = demo_lm_corpus.Corpus(train, held_out, held_out, [source])
    monkeypatch.setattr(train_demo_lm, "collect_corpus", lambda pyproject: corpus)
    sizes = {"steps": 2, "vocabulary": 300, "width": 16, "layers": 1, "heads": 2, "batch": 2, "seed": 5}
    small = [f"--{name}={value}" for name, value in sizes.items()] + ["--precision=fp32"]
    monkeypatch.setattr("sys.argv", ["train_demo_lm.py", "--out", str(tmp_path / "lm"), *small])
    train_demo_lm.main()
    written = {path.name for path in (tmp_path / "lm").iterdir()}
    assert written == {path.name for path in FOLDER.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "lm"))
    assert model.dtype == torch.float16
    assert len(AutoTokenizer.from_pretrained(str(tmp_path / "lm"))) == 300
    card = (tmp_path / "lm" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "2 steps" in card
    assert "--seed 5 --steps 2" in card
    assert str(tmp_path) not in "".join(p.read_text(errors="replace") for p in (tmp_path / "lm").iterdir())
    assert not [path for path in tmp_path.iterdir() if path.name != "lm"]


def test_corpus_keeps_held_out_documents_and_their_lines_out_of_training(monkeypatch, scripts):
    import demo_lm_corpus

    line = "This is a line that stands in two documents, and it is long enough to matter."
    variants = [f"{line}\nThe end of this one is told by the word {'x' * n} alone." for n in range(1, 200)]
    first = next(text for text in variants if docstrings.is_held_out(text))
    second = next(text for text in variants if not docstrings.is_held_out(text))
    documents = (
        docstrings.Document("b", second),
        docstrings.Document("a", first),
        docstrings.Document("c", first.upper()),
    )
    monkeypatch.setattr(demo_lm_corpus, "standard_library", lambda: documents)
    monkeypatch.setattr(demo_lm_corpus, "_language_reference", lambda: iter(()))
    monkeypatch.setattr(demo_lm_corpus, "dependency_closure", lambda pyproject: [])
    corpus = demo_lm_corpus.collect_corpus(Path("pyproject.toml"))
    assert [document.key for document in corpus.held_out] == ["a"]
    assert [document.key for document in corpus.train] == ["b"]
    assert line not in "".join(document.text for document in corpus.train)
