"""What a notebook says about how it was made: facts of its objects, seeds in its code, the time it ran."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from report_pages import code, markdown, notebook, read_page, saved, shown, valid

import nb_sae as ns
from nb_sae.facts import KEY, MIME, facts_of, lines_of, merged
from nb_sae.reporting.origin import facts_in, origin_html, seeds_in
from nb_sae.reporting.text import Scrubber


def planted() -> dict[str, object]:
    """A store, a session and its dictionary, whose facts are known."""
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    store = ns.ActivationStore.from_tensor(torch.from_numpy(x))
    session = ns.Session(
        store,
        ns.SAEConfig.topk(k=4, d_sae=24),
        ns.TrainConfig(rows=512, batch_rows=128, seed=7),
        device="cpu",
        progress=False,
    ).run(progress=False)
    return {"store": store, "session": session, "dictionary": session.dictionary}


def test_objects_say_what_they_are_wherever_they_lie():
    held = planted()
    facts = facts_of([{"deep": [held["store"], (held["dictionary"],)]}, held["session"], 3, "text"])
    (dictionary,) = facts["dictionaries"]  # the session says the same of the same weights
    assert (dictionary["latents"], dictionary["seed"], dictionary["rows_seen"]) == (24, 7, 512)
    (store,) = facts["stores"]
    assert (store["rows"], store["width"]) == (300, 16)
    assert facts["versions"]["nb_sae"] == ns.__version__
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert json.loads(json.dumps(facts)) == facts
    said = dict(lines_of(facts))
    assert "24 latents" in said["Dictionary"]
    assert "seed 7" in said["Dictionary"]
    assert "300 × 16" in said["Rows"]


def test_without_an_object_of_ours_only_the_versions_are_said():
    facts = facts_of([3, {"a": [object()]}, SimpleNamespace(W_dec=1, provenance={})])
    assert set(facts) <= {"versions", "device"}


def test_an_object_that_cannot_be_read_hides_no_other():
    held = planted()
    broken = held["session"].dictionary
    broken.provenance = None
    facts = facts_of([broken, held["store"]])
    assert "dictionaries" not in facts
    assert len(facts["stores"]) == 1


def test_a_name_that_is_a_path_loses_its_folders():
    held = planted()
    for name in (
        "/data/anna/models/vit.pt",
        "file:///g/anna/vit.pt",
        "~/models/vit.pt",
        "C:\\Users\\anna\\vit.pt",
        "./models/vit.pt",
    ):
        held["dictionary"].model = name
        assert facts_of([held["dictionary"]])["dictionaries"][0]["model"] == "vit.pt"
    held["dictionary"].model = "hf-hub:org/name"
    assert facts_of([held["dictionary"]])["dictionaries"][0]["model"] == "hf-hub:org/name"


def test_a_dashboard_leaves_the_facts_in_its_picture_and_the_report_reads_them(tmp_path: Path, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda *data, **options: displayed.append((data, options)))
    held = planted()
    analysis = ns.analyze(held["dictionary"], held["store"], progress=False)
    monkeypatch.setattr("nb_sae.facts._namespace", lambda: {"a": analysis})
    ns.FeatureDashboard(analysis)._ipython_display_()
    (bundle,), options = displayed[0]
    output = shown(html=bundle["text/html"])
    output.metadata = options["metadata"]
    path = saved(tmp_path, notebook(code("dash", output)))
    text = read_page(ns.report(path)).text
    assert f"{analysis.site.name} on 300 rows" in text
    shared = valid(tmp_path / "made.shared.ipynb")
    assert shared.metadata[KEY]["analyses"][0]["rows"] == analysis.rows
    assert KEY not in shared.cells[0].outputs[0].metadata
    text = read_page(ns.report(tmp_path / "made.shared.ipynb", tmp_path / "again.html")).text
    assert "on 300 rows" in text


def test_an_executed_report_asks_the_kernel_also_after_a_failure(tmp_path: Path):
    source = "import nb_sae as ns\nwords = ns.texts(['one', 'two', 'three'])"
    path = saved(tmp_path, notebook(code(source), code("raise ValueError('no')"), code("later = 1")))
    try:
        ns.report(path, execute=True, progress=False)
    except ns.errors.ReportError:
        text = read_page(tmp_path / "made.html").text
    assert "(3 texts)" in text
    assert f"nb_sae {ns.__version__}" in text
    assert "UTC, in" in text


def test_seeds_are_read_from_the_code():
    cells = [
        markdown("seed=9"),
        code("%matplotlib inline\nSEED = 4\nfaces = ns.demo_faces(100, seed=SEED)  # seed=8"),
        code("rng = np.random.default_rng(3); torch.manual_seed(SEED); t.split(test=0.1, random_state=2, seed=True)"),
        code("not python ("),
        code("ns.demo_faces(5, seed=4); text = 'f(seed=5)'; f(seed=unknown)"),
    ]
    assert seeds_in(notebook(*cells)) == [
        "demo_faces(seed=4)", "default_rng(3)", "manual_seed(4)", "split(random_state=2)",
    ]  # fmt: skip
    assert seeds_in(notebook(code("x = 1"))) == []


def test_the_time_is_told_by_the_cells_where_lab_recorded_it(tmp_path: Path):
    made = notebook(code("1"), code("2"))
    for cell, minute in zip(made.cells, ("10:00:05", "10:02:05"), strict=True):
        cell.metadata["execution"] = {"iopub.execute_input": f"2026-03-04T{minute}.5Z"}
    assert "4 March 2026 10:00 UTC, in 2 min" in origin_html(made, Scrubber(tmp_path))


def test_facts_of_anybody_are_text_or_nothing(tmp_path: Path):
    bad = "<img src=x onerror=alert(1)>"
    for facts in (
        {"versions": {bad: bad}, "device": bad, "models": [{"name": bad, "revision": 3}], "started": bad},
        {"versions": [bad], "models": {"a": bad}, "dictionaries": [bad, {"budgets": bad}], "seconds": "x", "x": [bad]},
        {"data": [{"inputs": [bad]}], "started": "9999-12-31T23:59:59-14:00", "seconds": float("inf")},
        [bad],
    ):
        made = notebook(code("1", shown(plain="x")))
        made.metadata[KEY] = facts
        made.cells[0].outputs[0].data[MIME] = facts
        text = origin_html(made, Scrubber(tmp_path))
        assert "<img" not in text
        assert valid_report(tmp_path, made)
    made.metadata[KEY] = {"models": [{"name": "/data/anna/secret/vit.pt"}]}
    assert "anna" not in str(facts_in(made, Scrubber(tmp_path)))


def valid_report(folder: Path, made) -> bool:
    ns.report(saved(folder, made))
    return bool(valid(folder / "made.shared.ipynb"))


def test_merging_keeps_each_fact_once_and_the_last_word():
    one = {"models": [{"name": "a"}], "device": "CPU", "versions": {"torch": "1"}}
    two = {"models": [{"name": "a"}, {"name": "b"}], "device": "GPU", "versions": {"torch": "2", "polars": 3}}
    assert merged([one, two]) == {
        "models": [{"name": "a"}, {"name": "b"}], "device": "GPU", "versions": {"torch": "2"},
    }  # fmt: skip
    many = [{"models": [{"name": str(n)} for n in range(100)]}]
    assert len(merged(many)["models"]) == 40
    assert lines_of({}) == []
    assert facts_of([])["versions"]["Python"]


def test_the_public_name_shows_a_table():
    shown_as = ns.provenance(planted()["dictionary"])._repr_mimebundle_()
    assert "24 latents" in shown_as["text/plain"]
    assert "<th>Dictionary</th>" in shown_as["text/html"]
    assert shown_as[MIME]["dictionaries"]
