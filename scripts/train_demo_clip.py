"""Train the small CLIP that nb_sae ships, on drawn faces and their captions.

    python scripts/train_demo_clip.py --out nb_sae/assets/demo_clip

It is open_clip's own model, tokenizer and loss. It learns from the balanced table, where nothing depends on Male, so
the model itself has met every attribute independently; the bias of a notebook's data set is in that data set alone.
One thread with bfloat16 is the fastest way on a small CPU; other processes on the machine hardly slow it then.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import open_clip
import polars as pl
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode, get_pairs
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from nb_sae.data.captions import ANTONYMS, NOUNS, SYNONYMS, caption, sentence
from nb_sae.data.drawing import draw_face
from nb_sae.data.face_table import ATTRIBUTES, DRAWN, resolve_table, sample_attributes
from nb_sae.models.demo import CLIP_VOCABULARY, demo_clip, retrieval_at, zero_shot_table

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CONTEXT = 40
WORDS = [(*SYNONYMS[name], *ANTONYMS.get(name, ())) for name in DRAWN]
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8,
                   "pos_embed_type": "sin_cos_2d"},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2,
                 "tokenizer_kwargs": {"bpe_path": CLIP_VOCABULARY}},
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    train_x, train_has = cached(options.faces, options.seed, options)
    held_x, held_has = cached(options.held_out, options.seed + 1, options)
    print(f"{len(train_x)} + {len(held_x)} faces drawn in {time.monotonic() - started:.0f} s", flush=True)
    vocab_size = build_vocabulary(train_has[:8000], options.out / CLIP_VOCABULARY, options.merges)
    MODEL["text_cfg"]["vocab_size"] = vocab_size
    tokenizer = SimpleTokenizer(bpe_path=str(options.out / CLIP_VOCABULARY), context_length=CONTEXT)
    model = CLIP(**MODEL)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {vocab_size} tokens", flush=True)
    held = (held_x, held_has)
    train(model, tokenizer, train_x, train_has, held, options)
    save(model, options.out)
    shipped, _, shipped_tokenizer = demo_clip(options.out)
    table, recall = evaluate(shipped, shipped_tokenizer, held_x, held_has, options.seed + 1)
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, float_precision=3):
        print(table)
    failing = table.filter(pl.col("auc") < 0.9)["attribute"].to_list()
    mean = table["auc"].mean()
    print(f"mean zero-shot AUC {mean:.3f} on {len(held_x)} held-out faces; below 0.9: {', '.join(failing) or 'none'}")
    print(f"own caption among {len(held_x)}: R@1 {recall[1]:.3f}, R@10 {recall[10]:.3f}")
    (options.out / "MODEL_CARD.md").write_text(model_card(table, recall, options), encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("nb_sae/assets/demo_clip"))
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--faces", type=int, default=24_000, help="faces to train on")
    parser.add_argument("--held-out", type=int, default=1_000, help="faces to measure on (another seed)")
    parser.add_argument("--steps", type=int, default=2_600)
    parser.add_argument("--batch", type=int, default=64, help="faces a step; twice as many in the last quarter")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--merges", type=int, default=400, help="size of the byte-pair vocabulary")
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps the drawn faces between runs")
    parser.add_argument("--hint", type=float, default=10.0, help="weight of the attribute loss at the start")
    parser.add_argument("--every", type=int, default=200, help="steps between measurements and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    return parser.parse_args(arguments)


def one_face(number: int, seed: int) -> tuple[np.ndarray, frozenset[str]]:
    has = sample_attributes(np.random.default_rng((seed, number, 0)), resolve_table("balanced"))
    return np.asarray(draw_face(has, np.random.default_rng((seed, number, 1)))), has


def render(faces: int, seed: int, workers: int) -> tuple[np.ndarray, list[frozenset[str]]]:
    """Faces `(n, 64, 64, 3)` uint8 and what they have; the same numbers as `demo_faces(n, seed, table="balanced")`."""
    with get_context("spawn").Pool(workers) as pool:
        drawn = pool.map(partial(one_face, seed=seed), range(faces), chunksize=500)
    return np.stack([picture for picture, _ in drawn]), [has for _, has in drawn]


def cached(faces: int, seed: int, options: argparse.Namespace) -> tuple[np.ndarray, list[frozenset[str]]]:
    """What `render` gives, kept in `--cache` between runs."""
    if options.cache is None:
        return render(faces, seed, options.workers)
    options.cache.mkdir(parents=True, exist_ok=True)
    file = options.cache / f"faces-{seed}-{faces}.npz"
    if not file.exists():
        pictures, has = render(faces, seed, options.workers)
        labels = np.array([[name in held for name in ATTRIBUTES] for held in has])
        np.savez(file, pictures=pictures, labels=labels)
    with np.load(file) as kept:
        names = np.array(ATTRIBUTES)
        return kept["pictures"], [frozenset(names[row].tolist()) for row in kept["labels"]]


def build_vocabulary(faces: list[frozenset[str]], path: Path, merges: int) -> int:
    """Learn byte-pair merges from captions and write them as open_clip's SimpleTokenizer reads them."""
    rng = np.random.default_rng(0)
    texts = [caption(has, rng) for has in faces]
    texts += [
        sentence([phrase], noun)
        for noun in NOUNS
        for words in (*SYNONYMS.values(), *ANTONYMS.values())
        for phrase in words
    ]
    pattern, encoder = open_clip.tokenizer._tokenizer.pat, bytes_to_unicode()
    counts = Counter(word for text in texts for word in pattern.findall(text.lower()))
    words = {}
    for word, count in counts.items():
        letters = [encoder[byte] for byte in word.encode("utf-8")]
        words[(*letters[:-1], letters[-1] + "</w>")] = count
    learnt: list[tuple[str, str]] = []
    while len(learnt) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learnt.append(best)
        words = {merged(word, best): count for word, count in words.items()}
    lines = ['#version: 0.2 "nb_sae demo"', *(" ".join(pair) for pair in learnt)]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
    return 2 * len(encoder) + len(learnt) + 2


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair not in get_pairs(word):
        return word
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """`(n, 64, 64, 3)` uint8 to normalised `(n, 3, 64, 64)` float32, as open_clip's preprocessing does."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def train(model, tokenizer, pictures, faces, held, options) -> None:
    """`options.steps` steps of AdamW with warm-up and a cosine to zero; fresh captions every time."""
    rng = np.random.default_rng((options.seed, 7))
    # A linear reading of the attributes from both embeddings. It speeds up learning and is thrown away at the end.
    head = torch.nn.Linear(MODEL["embed_dim"], len(DRAWN))
    truth = torch.tensor([[name in has for name in DRAWN] for has in faces], dtype=torch.float32)
    everything = [*model.parameters(), *head.parameters()]
    matrices = [p for p in everything if p.ndim >= 2 and p.requires_grad]
    others = [p for p in everything if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=options.lr, betas=(0.9, 0.98),
    )  # fmt: skip
    loss_of, order, started, recent = ClipLoss(), np.empty(0, int), time.monotonic(), []
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 150)
        rate = options.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = options.batch * (1 if step < 0.75 * options.steps else 2)
        if len(order) < batch:
            order = rng.permutation(len(pictures))
        chosen, order = order[:batch], order[batch:]
        x = pixels(pictures[chosen])
        if rng.random() < 0.5:
            x = x.flip(3)
        x = x * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.15, 0.15))
        texts = [caption(faces[i], rng) for i in chosen]
        ids = tokenizer(texts)
        # The fused attention's backward pass is many times slower than the plain one on a CPU at this size.
        with sdpa_kernel(SDPBackend.MATH):
            with torch.autocast("cpu", torch.bfloat16):
                image, text, scale = model(x, ids)
            loss = loss_of(image.float(), text.float(), scale)
            weight = options.hint * min(1.0, max(0.0, (0.9 - step / options.steps) / 0.2))
            if weight:
                loss = loss + weight * hint(head, image.float(), text.float(), truth[chosen], texts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        recent.append(loss.item())
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save(model, options.out)
            table, recall = evaluate(model, tokenizer, held[0], held[1], options.seed + 1)
            worst = ", ".join(f"{name} {auc:.2f}" for name, auc in table.select("attribute", "auc").head(4).iter_rows())
            print(
                f"step {step + 1}/{options.steps} {time.monotonic() - started:.0f} s loss {np.mean(recent):.3f} "
                f"AUC {table['auc'].mean():.3f} R@10 {recall[10]:.3f} worst: {worst}",
                flush=True,
            )
            recent = []


def hint(head, image, text, truth, texts) -> torch.Tensor:
    """Loss of reading every attribute from the image, and from the text those that it speaks of."""
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    padded = [f" {words.replace(',', ' ')} " for words in texts]
    spoken = torch.tensor(
        [[any(f" {phrase} " in words for phrase in phrases) for phrases in WORDS] for words in padded]
    )
    of_text = loss(head(text * 8), truth, weight=spoken.float(), reduction="sum") / spoken.sum().clamp(min=1)
    return loss(head(image * 8), truth) + 0.2 * of_text


@torch.no_grad()
def evaluate(model, tokenizer, pictures, faces, seed) -> tuple[pl.DataFrame, dict[int, float]]:
    model.eval()
    x = pixels(pictures)
    texts = [caption(has, np.random.default_rng((seed, i, 2))) for i, has in enumerate(faces)]
    image = torch.cat([model.encode_image(part) for part in x.split(250)])
    text = torch.cat([model.encode_text(tokenizer(texts[at : at + 250])) for at in range(0, len(texts), 250)])
    attributes = pl.DataFrame({name: [name in has for has in faces] for name in ATTRIBUTES})
    table = zero_shot_table(model, tokenizer, image, attributes)
    model.train()
    return table, retrieval_at(image, text)


def save(model, out: Path) -> None:
    """Weights in half precision and the configuration, in open_clip's `local-dir:` form."""
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    partial_file = out / "open_clip_model.safetensors.partial"
    save_file(weights, partial_file, metadata={"format": "pt"})
    partial_file.chmod(0o644)
    partial_file.replace(out / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": {"size": 64, "mean": MEAN, "std": STD}}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def model_card(table: pl.DataFrame, recall: dict[int, float], options: argparse.Namespace) -> str:
    rows = "\n".join(f"| {name} | {auc:.3f} | {count} |" for name, auc, count, _ in table.iter_rows())
    failing = ", ".join(table.filter(pl.col("auc") < 0.9)["attribute"].to_list()) or "none"
    told = {"seed": options.seed, "faces": options.faces, "steps": options.steps, "batch": options.batch}
    command = " ".join(["python scripts/train_demo_clip.py", *(f"--{name} {value}" for name, value in told.items())])
    return f"""# The demo CLIP

A small CLIP (open_clip's own model, tokenizer and loss) that knows nothing but the faces that `nb_sae` draws. It is
made to try the tools on, in seconds and offline; it is of no use on photographs.

- **Data**: {options.faces:,} drawn faces, table `"balanced"` (nothing depends on `Male`, which no caption names),
  64 × 64 pixels, with fresh captions from a small grammar at every step. No photograph and no real person.
- **Model**: vision transformer, patch 8, {MODEL["vision_cfg"]["layers"]} layers of width
  {MODEL["vision_cfg"]["width"]}; text transformer, {MODEL["text_cfg"]["layers"]} layers of width
  {MODEL["text_cfg"]["width"]}; embedding {MODEL["embed_dim"]}; {MODEL["text_cfg"]["vocab_size"]} byte-pair tokens of
  its own. Weights in half precision.
- **Training**: {options.steps:,} steps of {options.batch} (in the last quarter {2 * options.batch}) faces, AdamW, seed
  {options.seed}, bfloat16 on a CPU. Until nine tenths of it a linear reading of the attributes from both
  embeddings adds to open_clip's loss; it is thrown away.
  `{command}`
- **Measured** on {options.held_out:,} held-out faces (another seed): mean zero-shot AUC
  {table["auc"].mean():.3f} over {len(table)} drawn attributes, below 0.90: {failing}. Own caption among
  {options.held_out:,}: R@1 {recall[1]:.3f}, R@10 {recall[10]:.3f} (chance 0.001 and 0.01).

| attribute | zero-shot AUC | faces that have it |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
