"""Every example of docs/metrics.md runs, and its table names every public metric."""

from __future__ import annotations

import re
from pathlib import Path

import planted
import pytest
import torch

import nb_sae as ns
from nb_sae.sae import metrics

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def dictionary(d_out: int = 24, **about) -> ns.Dictionary:
    W_dec = planted.atoms(64, 24)
    weights = {"W_enc": W_dec.T, "b_enc": torch.full((64,), -0.2), "W_dec": planted.atoms(64, d_out)}
    if about.get("sparsity") == "jump_relu":
        weights["threshold"] = torch.full((64,), 0.5)
    return ns.Dictionary({**weights, "b_dec": torch.zeros(d_out)}, **about)


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the page takes for granted."""
    rows, _ = planted.sparse_rows(planted.atoms(64, 24), 600)
    store = ns.ActivationStore.from_tensor(rows)
    x, y = ns.ActivationStore.from_tensor(rows, site="x"), ns.ActivationStore.from_tensor(rows[:, :9], site="y")
    (x_train, x_test), (y_train, y_test) = x.split(test=0.5), y.split(test=0.5)
    given = {"ns": ns, "torch": torch, "store": store, "msae": dictionary(budgets=(2, 4), widths=(32, 64))}
    given |= {"topk": dictionary(budgets=(4,)), "jump": dictionary(sparsity="jump_relu")}
    given |= {"x_train": x_train, "x_test": x_test, "y_train": y_train, "y_test": y_test}
    about = {"pre_bias": False, "site": "x", "target": "y", "d_out": 9}
    return given | {"transcoder": dictionary(budgets=(4,), **about), "other": dictionary(budgets=(2,), **about)}


def test_the_examples_about_rows_run(names, capsys):
    for block in BLOCKS:
        if "lm.module" not in block:
            exec(compile(block.replace("train, 512,", "train, 8,"), "docs/metrics.md", "exec"), names)
    assert names["frame"].height > 10
    assert names["analysis"].quality.height == 1
    assert len(names["coarse"]) == len(names["fine"]) == 32


def test_the_example_about_a_model_runs():
    lm, site = ns.load_lm("demo"), "gpt_neox.layers.1"
    ids = torch.stack([lm.preprocessor("text", context_tokens=8)(t).tensor[0] for t in ns.demo_texts(2, seed=0)])
    rows = lm.capture_rows(ids, [site], "text")[site].flatten(0, 1)
    W_dec = planted.atoms(80, rows.shape[1])
    weights = {"W_enc": W_dec.T, "b_enc": torch.zeros(80), "W_dec": W_dec, "b_dec": rows.mean(0)}
    given = {"ns": ns, "torch": torch, "lm": lm, "site": site, "ids": ids, "mean": rows.mean(0)}
    block = next(block for block in BLOCKS if "lm.module" in block)
    *before, last = block.strip().split("\n")
    exec("\n".join(before), given := given | {"dictionary": ns.Dictionary(weights, budgets=(64,), site=site)})
    found = eval(last, given)
    assert found.clean < found.ablated


def test_every_public_metric_is_in_the_table():
    table = PAGE.split("## Matched k")[0]
    functions = [name for name in metrics.__all__ if name[0].islower()]
    missing = [name for name in functions if f"`{name}`" not in table and name != "count_active"]
    assert missing == []
