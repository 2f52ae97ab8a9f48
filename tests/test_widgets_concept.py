"""The concept dashboard on the Python side: traits, answers, labels, budgets, bad input."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from test_widgets import ask
from test_widgets_wire import read
from widget_fakes import HOSTILE, built, fake_analysis, thumb

from nb_sae.concepts.schema import NAMES
from nb_sae.errors import WidgetError
from nb_sae.widgets.concept import ConceptDashboard

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")
FIXTURE = Path(__file__).parent / "fixtures" / "concepts.json"
INPUTS = 40


@dataclass
class FakeAnswer:
    row: int
    input_id: int
    hits: pl.DataFrame
    probabilities: tuple[float, ...]
    cosine: float
    active: tuple[tuple[int, float], ...]


@dataclass
class FakeEditor:
    """Row r finds r+1, r+2, …; every unit that a latent is raised moves that by one."""

    prompts: list[str] = field(default_factory=lambda: ["a face with glasses", "a face without glasses"])
    hits: int = 4
    queries: list[int] = field(default_factory=lambda: [3, 8])
    plain: bool = False

    def high(self, latent: int) -> float:
        return 4.0 + latent

    def edit(self, row: int, latents) -> FakeAnswer:
        moved = int(sum(latents.values()))
        found = [(row + 1 + moved + i) % INPUTS for i in range(self.hits)]
        hits = pl.DataFrame(
            {
                "row": found,
                "input_id": found,
                "key": [f"{one:06d}.jpg" for one in found],
                "score": np.linspace(0.9, 0.8, self.hits),
            }
        )
        sure = min(0.99, 0.2 + 0.05 * moved)
        return FakeAnswer(row, row, hits, (sure, 1 - sure), 1 - 0.01 * moved, ((1, 2.5), (4, 1.0)))

    def another(self) -> int:
        return 11

    def pictures(self, input_ids) -> pl.DataFrame:
        webp = [b"RIFF" * (1 + one % 2) if self.plain else thumb(one) for one in input_ids]
        keys = [f"{one:06d}.jpg" for one in input_ids]
        return pl.DataFrame({"input_id": list(input_ids), "webp": webp, "key": keys})


@dataclass(frozen=True)
class FakeNames:
    frame: pl.DataFrame
    about: dict = field(default_factory=lambda: {"accept": "null", "false_name_rate": 0.05})


def fake_names(d_sae: int = 64, *, hostile: bool = False) -> FakeNames:
    words = [HOSTILE[0] if hostile else "eyeglasses", "hat", "hat", "beard", "smile", "lipstick"]
    rows = [
        {
            "latent": latent, "name": word, "cosine": 0.6 - 0.05 * latent, "margin": 0.1, "ratio": 1.2,
            "runner_ups": ["glasses", "sunglasses"], "runner_up_cosines": [0.4, 0.3], "mean": 1.0, "density": 0.1,
            "p": 0.01, "accepted": latent != 3, "data_name": "Eyeglasses" if latent == 0 else None,
            "data_auc": 0.97 if latent == 0 else None, "data_p": 0.001 if latent == 0 else None,
            "agrees": True if latent == 0 else None,
        }
        for latent, word in enumerate(words)
    ]  # fmt: skip
    return FakeNames(pl.DataFrame(rows, schema=NAMES).filter(pl.col("latent") < d_sae))


def noted(analysis):
    """The same analysis with a user's own words."""
    notes = pl.DataFrame(
        {"latent": [4, 20], "label": ["grin", "left light"], "rating": [5, None], "comment": [None, "see row 3"]},
        schema={"latent": pl.UInt32, "label": pl.String, "rating": pl.Int8, "comment": pl.String},
    )
    held = _Noted(**{name: getattr(analysis, name) for name in analysis.__dataclass_fields__})
    object.__setattr__(held, "notes", notes)
    return held


class _Noted(type(fake_analysis("pooled"))):
    pass


@pytest.fixture
def dashboard() -> ConceptDashboard:
    return ConceptDashboard(noted(fake_analysis("pooled")), fake_names(), editor=FakeEditor())


def table(dashboard: ConceptDashboard, trait: str, name: str, column: str) -> list:
    return read(getattr(dashboard, f"{trait}_header"), getattr(dashboard, trait), name, column)


def test_the_users_labels_come_first_and_win_over_found_names(dashboard):
    assert table(dashboard, "concepts", "concepts", "latent")[:2] == [4, 20]
    assert table(dashboard, "concepts", "concepts", "shown")[:3] == ["grin", "left light", "eyeglasses"]
    assert table(dashboard, "concepts", "concepts", "name")[:2] == ["smile", None]
    assert table(dashboard, "concepts", "concepts", "accepted")[-1] == 0
    assert dashboard.saved_latents == [4, 20, 0, 1, 5]  # one per word, accepted ones only
    assert "“grin”" in repr(dashboard)


def test_a_saved_view_holds_every_input_concept_and_step(dashboard):
    cells = {name: table(dashboard, "answers", "cells", name) for name in ("query", "latent", "value", "hits")}
    assert len(cells["query"]) == 2 * 5 * 5
    ids = table(dashboard, "answers", "inputs", "input_id")
    places = zip(cells["query"], cells["latent"], cells["value"], strict=True)
    at = next(i for i, one in enumerate(places) if one == (0, 0, 2.0))
    assert [ids[place] for place in cells["hits"][at]] == [6, 7, 8, 9]  # row 3 and two units
    before = table(dashboard, "answers", "before", "hits")
    assert [ids[place] for place in before[1]] == [9, 10, 11, 12]
    assert max(cells["value"]) == pytest.approx(24.0)  # the 99th percentile of latent 20
    size = sum(
        len(getattr(dashboard, name)) for name in ("concepts", "cards", "cards_thumbs", "answers", "answers_thumbs")
    )
    assert size < 1_000_000


def test_the_kernel_answers_edits_of_several_concepts_and_other_inputs(dashboard):
    content, buffers = ask(dashboard, {"id": 5, "kind": "edit", "row": 3, "set": [[0, 2.0], [1, 1.0]]})
    assert content["ok"]
    ids = read(content["header"], buffers[0], "inputs", "input_id")
    (hits,) = read(content["header"], buffers[0], "cells", "hits")
    assert [ids[place] for place in hits] == [7, 8, 9, 10]
    assert len(content["thumbs_header"]["ends"]) == 4
    content, buffers = ask(dashboard, {"id": 6, "kind": "another"})
    assert read(content["header"], buffers[0], "queries", "row") == [11]


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "edit", "row": "3", "set": []},
        {"kind": "edit", "row": 3, "set": [[63, 1.0]]},
        {"kind": "edit", "row": 3, "set": [[0, float("nan")]]},
        {"kind": "edit", "row": 3, "set": [[0]]},
        {"kind": "unheard of"},
    ],
)
def test_what_cannot_be_answered_is_answered_with_an_error(dashboard, request_):
    content, _ = ask(dashboard, {"id": 1, **request_})
    assert content["ok"] is False
    assert content["error"]["cause"]


def test_without_an_editor_there_are_names_and_cards_only():
    dashboard = ConceptDashboard(fake_analysis("pooled"), fake_names())
    assert dashboard.about["edits"] is False
    assert table(dashboard, "cards", "cards", "latent")[:2] == [0, 1]
    content, _ = ask(dashboard, {"id": 1, "kind": "another"})
    assert content["ok"] is False


def test_bad_names_and_latents_are_refused():
    analysis = fake_analysis("pooled")
    with pytest.raises(WidgetError, match="without latent and name"):
        ConceptDashboard(analysis, pl.DataFrame({"a": [1]}))
    with pytest.raises(WidgetError, match="latent 70"):
        ConceptDashboard(analysis, pl.DataFrame({"latent": [70], "name": ["x"]}))
    with pytest.raises(WidgetError, match="latent=63 has no name"):
        ConceptDashboard(analysis, fake_names(), latent=63)
    dashboard = ConceptDashboard(analysis, fake_names())
    with pytest.raises(WidgetError, match="latent=63 has no name"):
        dashboard.latent = 63
    none = ConceptDashboard(analysis, fake_names().frame.head(0))
    assert none.latent == 0
    assert repr(none)


_OF_THE_DAY = ("layout", "kernel_side")  # of this version or this session, not of the contract


def fixture() -> dict:
    analysis = fake_analysis("pooled", d_sae=12, inputs=6, top=3, interval=1, hostile=True, pictures=False)
    dashboard = ConceptDashboard(analysis, fake_names(hostile=True), editor=FakeEditor(plain=True))
    asked, buffers = dashboard._answer({"id": 1, "kind": "edit", "row": 3, "set": [[0, 2.0], [1, 3.0]]})
    other, other_buffers = dashboard._answer({"id": 2, "kind": "another"})
    state = {name: getattr(dashboard, name) for name in dashboard.trait_names(sync=True) if not name.startswith("_")}
    kept = bytes | dict | int
    state = {name: value for name, value in state.items() if isinstance(value, kept) and name not in _OF_THE_DAY}
    encode = {name: base64.b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    return {
        "state": {**state, **encode, "twin": "twin-2"},
        "binary": list(encode),
        "asked": {"content": asked, "buffers": [base64.b64encode(one).decode() for one in buffers]},
        "another": {"content": other, "buffers": [base64.b64encode(one).decode() for one in other_buffers]},
    }


def test_the_committed_fixture_is_what_python_writes(built):
    said = "python tests/test_widgets_concept.py writes it anew; vitest must then pass as well"
    assert json.loads(FIXTURE.read_text(encoding="utf-8")) == json.loads(json.dumps(fixture())), said


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), indent=1) + "\n", encoding="utf-8")
