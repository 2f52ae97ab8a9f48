"""Labels, ratings and comments: kept with the analysis, whatever happens to the process."""

from __future__ import annotations

import copy
import gc
import pickle
import re
from pathlib import Path

import polars as pl
import pytest
from widget_fakes import HOSTILE, LONE_SURROGATE, built, fake_analysis

import nb_sae as ns
from nb_sae import atomic
from nb_sae.analysis.schema import NOTES
from nb_sae.errors import ConfigError, FormatError, InputError, StoreError, WidgetError
from nb_sae.widgets.feature import FeatureDashboard

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


def fresh(kind: str = "pooled", d_sae: int = 8) -> ns.Analysis:
    made = fake_analysis(kind, d_sae=d_sae)
    facts = {name: value for name, value in vars(made).items() if name not in ("d_sae", "extra")}
    return ns.Analysis(**facts, model="fake")


def test_note_parts_are_set_kept_and_taken_away_one_by_one():
    analysis = fresh()
    assert analysis.notes.schema == NOTES
    assert analysis.notes.is_empty()
    analysis.note(3, label="  eye \n glasses ", rating=4)
    analysis.note(1, comment="only on the left\n")
    analysis.note(3, comment="thick frames")
    assert analysis.notes.rows() == [(1, None, None, "only on the left"), (3, "eye glasses", 4, "thick frames")]
    assert "2 noted" in repr(analysis)
    analysis.note(3, label="", rating=0)
    assert analysis.notes.rows()[1] == (3, None, None, "thick frames")
    analysis.note(3, comment="")
    assert analysis.notes["latent"].to_list() == [1]


def test_notes_come_back_with_the_saved_analysis_and_later_ones_are_written_at_once(tmp_path):
    analysis = fresh()
    analysis.note(2, label="hat")
    analysis.save(tmp_path / "a")
    analysis.note(5, label="smile", rating=5)  # after save: nothing else is called
    loaded = ns.Analysis.load(tmp_path / "a")
    assert loaded.notes.equals(analysis.notes)
    loaded.note(2, label="")
    assert ns.Analysis.load(tmp_path / "a").notes["label"].to_list() == ["smile"]
    loaded.note(5, label="", rating=0)
    assert ns.Analysis.load(tmp_path / "a").notes.is_empty()


def test_an_analysis_saved_without_notes_loads_with_none(tmp_path):
    fresh().save(tmp_path / "a")
    # As every version before notes wrote it.
    assert not (tmp_path / "a" / "notes.parquet").exists()
    assert ns.Analysis.load(tmp_path / "a").notes.is_empty()


def test_two_processes_add_to_each_others_notes(tmp_path):
    fresh().save(tmp_path / "a")
    one, other = ns.Analysis.load(tmp_path / "a"), ns.Analysis.load(tmp_path / "a")
    one.note(1, label="one")
    other.note(2, label="two")
    one.note(3, label="three")
    assert one.notes["label"].to_list() == ["one", "two", "three"]
    one.save(tmp_path / "b")
    other.note(4, rating=1)
    one.note(5, rating=2)
    assert ns.Analysis.load(tmp_path / "a").notes["latent"].to_list() == [1, 2, 3, 4]
    assert ns.Analysis.load(tmp_path / "b").notes["latent"].to_list() == [1, 2, 3, 5]


def test_saving_again_keeps_what_another_process_noted_meanwhile(tmp_path):
    fresh().save(tmp_path / "a")
    one, other = ns.Analysis.load(tmp_path / "a"), ns.Analysis.load(tmp_path / "a")
    other.note(2, label="two")
    one.save(tmp_path / "a", overwrite=True)
    assert ns.Analysis.load(tmp_path / "a").notes["label"].to_list() == ["two"]


def test_a_crash_while_writing_leaves_the_notes_as_they_were(tmp_path, monkeypatch):
    fresh().save(tmp_path / "a")
    analysis = ns.Analysis.load(tmp_path / "a")
    analysis.note(1, label="kept")

    def crash(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", crash)
    with pytest.raises(StoreError, match=r"not taken.*No space left.*analysis\.save\(path\)"):
        analysis.note(1, label="lost")
    monkeypatch.undo()
    assert analysis.notes["label"].to_list() == ["kept"]
    assert ns.Analysis.load(tmp_path / "a").notes["label"].to_list() == ["kept"]
    assert [file.name for file in (tmp_path / "a").iterdir() if file.name.startswith(".")] == []


def test_a_damaged_file_of_notes_is_refused_by_name(tmp_path):
    fresh().save(tmp_path / "a")
    (tmp_path / "a" / "notes.parquet").write_bytes(b"not parquet")
    with pytest.raises(FormatError, match=r"notes\.parquet cannot be read.*Move it away"):
        ns.Analysis.load(tmp_path / "a")
    pl.DataFrame({"latent": [1]}).write_parquet(tmp_path / "a" / "notes.parquet")
    with pytest.raises(FormatError, match=r"notes\.parquet has columns"):
        ns.Analysis.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latent": 8, "label": "x"}, r"latent=8 is none of this dictionary's 0 … 7"),
        ({"latent": -1, "label": "x"}, "latent=-1"),
        ({"latent": 1.5, "label": "x"}, r"latent=1\.5"),
        ({"latent": True, "label": "x"}, "latent=True"),
        ({"latent": "3", "label": "x"}, "latent='3'"),
        ({"latent": 3, "rating": 6}, "rating=6 is no whole number from 1 to 5"),
        ({"latent": 3, "rating": 2.5}, r"rating=2\.5"),
        ({"latent": 3, "rating": True}, "rating=True"),
        ({"latent": 3, "label": 7}, "label=7 is a int"),
        ({"latent": 3, "label": "x" * 121}, "121 characters; at most 120.*comment="),
        ({"latent": 3, "comment": "x" * 2001}, "2,001 characters; at most 2,000 are kept"),
        ({"latent": 3}, r"note\(3\) says nothing"),
    ],
)
def test_notes_that_say_nothing_usable_are_refused(given, message):
    analysis = fresh()
    with pytest.raises(ConfigError, match=message):
        analysis.note(**given)
    assert analysis.notes.is_empty()


def test_strange_text_survives_the_file(tmp_path):
    analysis = fresh(d_sae=len(HOSTILE) + 1)
    for latent, text in enumerate(HOSTILE):
        analysis.note(latent, comment=text)
    analysis.note(len(HOSTILE), label=LONE_SURROGATE)
    analysis.save(tmp_path / "a")
    notes = ns.Analysis.load(tmp_path / "a").notes
    assert notes["comment"].to_list()[:-1] == [text.strip() for text in HOSTILE]
    assert notes["label"][-1] == "lone \ufffd surrogate"


def test_notes_move_to_an_analysis_made_anew_and_never_replace_its_own(tmp_path):
    old, new = fresh(), fresh()
    old.note(1, label="old one", rating=3)
    old.note(2, label="old two")
    new.note(2, label="my own")
    assert new.take_notes(old) == 1
    assert new.notes["label"].to_list() == ["old one", "my own"]
    assert new.take_notes(old, overwrite=True) == 2
    assert new.notes.equals(old.notes)
    old.notes.write_csv(tmp_path / "notes.csv")
    exported = fresh()
    assert exported.take_notes(tmp_path / "notes.csv") == 2
    assert exported.notes.equals(old.notes)


def test_notes_that_belong_elsewhere_are_refused(tmp_path):
    larger = fresh(d_sae=20)
    larger.note(15, label="x")
    with pytest.raises(ConfigError, match="latent=15"):
        fresh().take_notes(larger)
    with pytest.raises(InputError, match="from a int"):
        fresh().take_notes(3)
    with pytest.raises(InputError, match="comment, label, rating is missing"):
        fresh().take_notes(pl.DataFrame({"latent": [1]}))
    with pytest.raises(InputError, match="no file of notes"):
        fresh().take_notes(tmp_path / "nowhere.csv")


def test_notes_survive_pickle_and_copies_are_their_own():
    analysis = fresh()
    analysis.note(1, label="one")
    again = pickle.loads(pickle.dumps(analysis.book))
    assert again.frame.equals(analysis.notes)
    other = copy.deepcopy(analysis)
    other.note(2, label="two")
    assert analysis.notes.height == 1


def test_notes_are_not_written_into_a_folder_that_is_gone(tmp_path):
    folder: Path = fresh().save(tmp_path / "a")
    analysis = ns.Analysis.load(folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="not taken"):
        analysis.note(1, label="x")
    analysis.save(tmp_path / "c")
    analysis.note(1, label="x")
    assert ns.Analysis.load(tmp_path / "c").notes.height == 1


# ── in the feature dashboard ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def noted() -> tuple[ns.Analysis, FeatureDashboard, list]:
    analysis = fresh("patches")
    dashboard = FeatureDashboard(analysis, names={1: "automatic", 2: "other"}, latent=1)
    sent = []
    dashboard.send = lambda content, buffers=None: sent.append(content)
    return analysis, dashboard, sent


def ask(dashboard: FeatureDashboard, **what) -> None:
    dashboard._on_request(dashboard, {"id": 7, "kind": "note", **what}, [])


def test_a_label_typed_on_the_card_reaches_the_analysis_and_wins_over_the_name(noted):
    analysis, dashboard, sent = noted
    assert dashboard.name_of(1) == "automatic"
    ask(dashboard, latent=1, label="glasses", rating=5, comment="thick")
    assert sent == [{"id": 7, "ok": True}]
    assert analysis.notes.rows() == [(1, "glasses", 5, "thick")]
    assert dashboard.notes == {"1": {"label": "glasses", "rating": 5, "comment": "thick"}}
    assert dashboard.name_of(1) == "glasses"
    assert "“glasses”" in repr(dashboard)
    with_label = dashboard.picture()
    ask(dashboard, latent=1, label="", rating=0, comment="")
    assert dashboard.notes == {}
    assert dashboard.name_of(1) == "automatic"
    assert dashboard.picture() != with_label


def test_a_note_from_python_reaches_every_open_dashboard(noted):
    analysis, dashboard, _ = noted
    second = FeatureDashboard(analysis)
    analysis.note(4, label="x")
    assert dashboard.notes == second.notes == {"4": {"label": "x", "rating": None, "comment": None}}
    assert second.get_state()["notes"] == second.notes


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ({"latent": 99, "label": "x"}, "latent=99 is none"),
        ({"latent": 1, "rating": 9}, "rating=9"),
        ({"latent": 1, "label": {"a": 1}}, "is a dict"),
        ({}, "latent=None|says nothing"),
    ],
)
def test_a_note_that_is_refused_is_answered_with_why(noted, what, cause):
    analysis, dashboard, sent = noted
    ask(dashboard, **what)
    assert sent[0]["ok"] is False
    assert re.search(cause, sent[0]["error"]["cause"])
    assert analysis.notes.is_empty()


def test_a_dashboard_of_an_analysis_without_notes_offers_none():
    dashboard = FeatureDashboard(fake_analysis("patches"))
    assert dashboard.notes is None
    assert dashboard._answer({"id": 1, "kind": "ping"})[0]["ok"]
    with pytest.raises(WidgetError, match="answers no request of kind 'note'"):
        dashboard._answer({"id": 1, "kind": "note", "latent": 1, "label": "x"})


def test_an_analysis_does_not_keep_closed_dashboards_alive():
    analysis = fresh()
    dashboard = FeatureDashboard(analysis)
    dashboard.close()
    del dashboard
    gc.collect()
    analysis.note(1, label="x")
    assert analysis.book._watching == []
