"""The card of a text on the Python side: promoted tokens, and a text of the user that a reader reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from test_widgets import ask, rows
from widget_fakes import built, fake_analysis, fake_read

from nb_sae.errors import InputError, WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.cards import Limits, cut_cards
from nb_sae.widgets.feature import FeatureDashboard
from nb_sae.widgets.picture import draw_feature

__all__ = ["built"]
pytestmark = pytest.mark.usefixtures("built")


@pytest.mark.parametrize("inputs", [40, 600])
def test_promoted_tokens_of_the_saved_latents_are_those_of_the_table(inputs):
    analysis = fake_analysis("text", inputs=inputs)
    dashboard = FeatureDashboard(analysis)
    assert analysis.promoted is not None
    saved = rows(dashboard.saved_header, dashboard.saved, "promoted")
    for card, latent in enumerate(dashboard.saved_latents):
        found = saved.filter(pl.col("card") == card)
        for reads, side in ((0, "write"), (1, "read")):
            for suppressed, sign in ((0, "promoted"), (1, "suppressed")):
                planted = analysis.promoted.filter(latent=latent, side=side, sign=sign).sort("rank")
                kept = found.filter(reads=reads, suppressed=suppressed)
                assert kept["token"].to_list() == planted["token"].to_list()
                assert kept["logit"].to_list() == pytest.approx(planted["logit"].to_list(), rel=1e-6)


def test_promoted_tokens_that_do_not_fit_give_up_their_last_ranks_and_leave_room_for_examples():
    analysis = fake_analysis("text", d_sae=64)
    assert analysis.promoted is not None
    long = analysis.promoted.with_columns(token=pl.lit("x" * 10_000))
    cards = cut_cards(replace(analysis, promoted=long), list(range(63)), Limits(8, 1, max_bytes=300_000))
    kept = cards.tables["promoted"]
    assert 0 < kept.height < 63 * 40
    assert kept["rank"].max() < 9
    assert kept.group_by("card").len()["len"].n_unique() == 1
    assert len(wire.pack({"promoted": kept})[1]) <= 50_000
    assert cards.tables["examples"].height > 63


def test_a_token_without_a_name_shows_its_number():
    analysis = fake_analysis("text")
    assert analysis.promoted is not None
    unnamed = analysis.promoted.with_columns(token=pl.lit(None, pl.String))
    shown = cut_cards(replace(analysis, promoted=unnamed), [3], Limits(1, 0)).tables["promoted"]
    assert shown["token"].to_list() == [f"<id {one}>" for one in shown["token_id"]]


def test_an_analysis_without_a_lens_has_no_table_of_promoted_tokens():
    without = replace(fake_analysis("text"), promoted=None)
    assert "promoted" not in cut_cards(without, [3], Limits(4, 1)).tables
    assert draw_feature(without, 3) != draw_feature(fake_analysis("text"), 3)


# A text of the user


def test_a_text_of_the_user_is_answered_with_the_readers_numbers():
    dashboard = FeatureDashboard(fake_analysis("text"), read=fake_read)
    reply, (block,) = ask(dashboard, {"id": 4, "kind": "read", "text": "some text", "latent": 7})
    tokens = rows(reply["header"], block, "tokens")
    expected = fake_read("some text", [7])
    assert tokens["token"].to_list() == list(expected.tokens)
    assert tokens["act"].to_list() == pytest.approx(expected.activations[:, 0].tolist())
    np.testing.assert_allclose(tokens["effect"], expected.next_token[:, 0])
    assert rows(reply["header"], block, "strongest")["latent"].to_list() == [4, 1]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"text": " \n", "latent": 1}, "The text is empty"),
        ({"text": 5, "latent": 1}, "The text is empty"),
        ({"text": "x" * 10_000_000, "latent": 1}, "10,000,000 characters; at most 100,000"),
        ({"text": "a", "latent": 999}, "outside"),
    ],
)
def test_a_text_that_cannot_be_read_is_answered_with_the_reason(request_, said):
    dashboard = FeatureDashboard(
        fake_analysis("text"), read=lambda text, latents: pytest.fail("read in spite of the reason")
    )
    reply, _ = ask(dashboard, {"id": 4, "kind": "read", **request_})
    assert said in reply["error"]["cause"]


def test_what_the_reader_refuses_reaches_the_card_and_a_wrong_reader_is_named():
    def refuse(text, latents):
        raise InputError("The text has 900 tokens, a context of demo holds 128. Shorten it.")

    asked = {"id": 4, "kind": "read", "text": "a", "latent": 1}
    assert "holds 128" in ask(FeatureDashboard(fake_analysis("text"), read=refuse), asked)[0]["error"]["cause"]
    wrong = FeatureDashboard(fake_analysis("text"), read=lambda text, latents: fake_read(text, [1, 2]))
    assert "expected (5, 1)" in ask(wrong, asked)[0]["error"]["cause"]
    assert "nothing to read with" in ask(FeatureDashboard(fake_analysis("text")), asked)[0]["error"]["cause"]
    with pytest.raises(WidgetError, match=r"read is a str.*ns\.reader"):
        FeatureDashboard(fake_analysis("text"), read="lm")  # pyright: ignore[reportArgumentType]
