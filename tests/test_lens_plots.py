"""Figures of the vision lens and of a concept's maps: what they draw is what the frames say."""

from __future__ import annotations

import polars as pl
import pytest

from nb_sae import plots
from nb_sae.attribution.schema import IDENTIFIABILITY, LENS_PATCHES
from nb_sae.errors import WidgetError
from nb_sae.flow.schema import CONCEPT_FLOW


@pytest.fixture
def by_block() -> pl.DataFrame:
    lines = [
        {
            "layer": layer,
            "site": f"visual.{layer}<b>",
            "tokens": tokens,
            "identifiability": 0.5 + 0.1 * layer + (0.05 if tokens == "cls" else 0),
            "null": 0.5,
            "null_low": 0.4,
            "null_high": 0.6,
            "change": None if layer == 0 else 0.7,
            "rows": 20 if tokens == "cls" else 320,
        }
        for tokens in ("cls", "patches")
        for layer in (2, 0, 1)
    ]
    return pl.DataFrame(lines, schema=IDENTIFIABILITY, orient="row")


def test_identifiability_draws_both_lines_over_what_random_texts_give(by_block):
    figure = plots.identifiability(by_block)
    band, answer, change, other_band, patches, _ = figure.data
    assert list(answer.x) == [0, 1, 2]
    assert list(answer.y) == pytest.approx([0.55, 0.65, 0.75])
    assert list(change.y) == [None, 0.7, 0.7]
    assert list(patches.y) == pytest.approx([0.5, 0.6, 0.7])
    assert list(band.y) == list(other_band.y) == [0.6] * 3 + [0.4] * 3
    assert answer.text[0] == "visual.0&lt;b&gt;"
    assert "20 inputs" in figure.layout.title.text


def test_identifiability_of_answers_alone_has_one_line(by_block):
    assert len(plots.identifiability(by_block.filter(pl.col("tokens") == "cls")).data) == 3
    with pytest.raises(WidgetError, match="without null_high"):
        plots.identifiability(by_block.drop("null_high"))


@pytest.fixture
def concept() -> pl.DataFrame:
    lines = [
        {
            "step": step,
            "site": f"block {step}",
            "layer": step + 2,
            "lane": "embedding" if step == 0 else "residual",
            "latent": 10 + step,
            "name": "a <hat>" if step == -1 else None,
            "input_id": number,
            "rows": None if step == 0 else 2,
            "columns": None if step == 0 else 3,
            "map": None if step == 0 else [10.0 * step + number + place for place in range(6)],
            "cls": 1.0,
        }
        for step in (-2, -1, 0)
        for number in range(5)
    ]
    return pl.DataFrame(lines, schema=CONCEPT_FLOW, orient="row")


def test_patch_maps_stand_row_by_row_in_the_grid(concept):
    figure = plots.patch_maps(concept, inputs=[3, 1])
    assert len(figure.data) == 4  # two pictures, two blocks; the embedding has no patches
    first = next(one for one in figure.data if one.xaxis == "x")
    assert [list(row) for row in first.z] == [[-17, -16, -15], [-14, -13, -12]]
    assert (first.zmin, first.zmax) == (-19, -12)  # shared by the pictures of a block
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["block 0: 8", "block 1: 9<br>a &lt;hat&gt;"]
    assert figure.layout.yaxis4.scaleanchor == "x4"


def test_patch_maps_of_a_chain_choose_where_it_is_active_and_leave_an_empty_map_dark(concept):
    strength = pl.col("input_id").replace_strict({0: 0.0, 1: 3.0, 2: 1.0, 3: 4.0, 4: 2.0})
    flat = pl.when(pl.col("step") == -2).then(0.0).otherwise(strength)
    maps = pl.when(pl.col("map").is_not_null()).then(pl.concat_list([flat] * 6).cast(pl.List(pl.Float32)))
    figure = plots.patch_maps(concept.with_columns(map=maps))
    assert len(figure.data) == 8  # four pictures, two blocks
    assert [axis.title.text for axis in figure.select_yaxes() if axis.title.text] == [
        f"input {n}" for n in (1, 2, 3, 4)
    ]
    empty = next(one for one in figure.data if one.xaxis == "x")
    assert (empty.zmin, empty.zmax) == (0, 1)


def test_patch_maps_of_a_lens_show_one_text():
    lines = [
        {
            "input_id": 0,
            "layer": 1,
            "site": "b1",
            "text": text,
            "rows": 1,
            "columns": 2,
            "map": [value, value],
            "cls": 0,
        }
        for text, value in (("hat", 1.0), ("dog", 2.0))
    ]
    frame = pl.DataFrame(lines, schema=LENS_PATCHES, orient="row", strict=False)
    assert plots.patch_maps(frame).data[0].z[0][0] == 1.0
    assert plots.patch_maps(frame, text="dog").data[0].z[0][0] == 2.0
    with pytest.raises(WidgetError, match="no map of these pictures"):
        plots.patch_maps(frame, text="cat")
    with pytest.raises(WidgetError, match="without map"):
        plots.patch_maps(frame.drop("map"))
