"""What Python packs for the browser, and the contract fixture that both sides read."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from widget_fakes import HOSTILE, LONE_SURROGATE, built, fake_analysis, fake_read

from nb_sae.analysis import schema
from nb_sae.errors import WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.feature import FeatureDashboard

FIXTURES = Path(__file__).parent / "fixtures"
NUMPY = {"f32": "<f4", "i32": "<i4", "u32": "<u4", "u16": "<u2", "u8": "<u1", "i8": "<i1"}
STATE = (
    "latent", "twin", "about", "latents_header", "latents", "saved_header", "saved", "thumbs_header", "thumbs",
)  # fmt: skip
__all__ = ["built"]


def contract_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "latent": [0, 7, 4_294_967_295],
            "step": [-1, 0, 9],
            "density": [0.0, 0.125, float("nan")],
            "count": [0, 1, 4_000_000_000],
            "delta": [-5, 0, 2_147_483_647],
            "dead": [True, False, False],
            "map": [[1, 2, 3], [], [255]],
            "acts": [[0.5], [1.5, -2.25], []],
            "name": [HOSTILE[1], None, HOSTILE[2]],
            "tokens": [[" a", HOSTILE[0]], [], ["\n"]],
        },
        schema={
            "latent": pl.UInt32,
            "step": pl.Int8,
            "density": pl.Float64,
            "count": pl.UInt64,
            "delta": pl.Int64,
            "dead": pl.Boolean,
            "map": pl.List(pl.UInt8),
            "acts": pl.List(pl.Float32),
            "name": pl.String,
            "tokens": pl.List(pl.String),
        },
    )


def contract() -> dict:
    header, block = wire.pack({"all": contract_frame(), "none": contract_frame().head(0)})
    thumbs_header, thumbs = wire.pack_thumbs([b"RIFF", b"", b"WEBPx"])
    frame = contract_frame()
    values = {name: frame[name].to_list() for name in frame.columns}
    values["density"] = [None if value != value else value for value in values["density"]]
    return {
        "header": header,
        "block": base64.b64encode(block).decode(),
        "values": values,
        "thumbs_header": thumbs_header,
        "thumbs": base64.b64encode(thumbs).decode(),
        "sig3": [[v, wire.sig3(v)] for v in (0, 4.1, 0.0321, 12_345, 999.4, 999.7, 1.2345e-7, 123, 100, -3.5, 2.5e6)],
        "visible": [[text, wire.visible_text(text)] for text in (*HOSTILE, "plain text", " lead")],
    }


def read(header: dict, block: bytes, table: str, column: str) -> list:
    """A second reader, written from the header's description alone."""
    entry = next(c for c in header["tables"][table]["columns"] if c["name"] == column)
    if entry["dtype"] == "json":
        return json.loads(block[entry["offset"] : entry["offset"] + entry["length"]])
    values = np.frombuffer(block, NUMPY[entry["dtype"]], entry["length"], entry["offset"])
    if "ends" not in entry:
        return values.tolist()
    ends = np.frombuffer(block, "<u4", header["tables"][table]["rows"], entry["ends"]).tolist()
    return [values[a:b].tolist() for a, b in zip([0, *ends], ends, strict=False)]


def saved_dashboard(kind: str) -> dict:
    """The state of a small dashboard with hostile strings: six saved cards of twelve latents, the last one dead."""
    analysis = fake_analysis(kind, d_sae=12, inputs=6, top=3, interval=1, hostile=True, pictures=False)
    if kind == "patches":  # the pictures' bytes depend on the encoder's version; here any will do
        frame = {"input_id": range(6), "width": [64] * 6, "height": [48] * 6, "webp": [b"RIFF", b"RI"] * 3}
        analysis = replace(analysis, pictures=pl.DataFrame(frame, schema=schema.PICTURES))
    names = {0: HOSTILE[0], 1: "glasses", 4: HOSTILE[2]}
    read = fake_read if kind == "text" else None
    dashboard = FeatureDashboard(analysis, saved=[0, 1, 2, 3, 4, 11], names=names, read=read)
    asked, buffers = dashboard._answer({"id": 1, "kind": "card", "latent": 7})
    reading = {}
    if kind == "text":
        content, answer = dashboard._answer({"id": 1, "kind": "read", "latent": 1, "text": "any"})
        reading = {"read": {"content": content, "buffers": [base64.b64encode(one).decode() for one in answer]}}
    state = {name: getattr(dashboard, name) for name in STATE}
    encode = {name: base64.b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    return {
        "state": {**state, **encode, "twin": "twin-1"},
        "binary": list(encode),
        "asked": {"content": asked, "buffers": [base64.b64encode(one).decode() for one in buffers]},
        **reading,
    }


def fixtures() -> dict[str, dict]:
    return {"wire": contract(), "patches": saved_dashboard("patches"), "text": saved_dashboard("text")}


def test_the_committed_fixtures_are_what_python_writes(built):
    said = "python tests/test_widgets_wire.py writes them anew; vitest must then pass as well"
    for name, made in fixtures().items():
        committed = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
        assert committed == json.loads(json.dumps(made)), said


def test_every_type_comes_back_equal():
    frame = contract_frame()
    header, block = wire.pack({"all": frame})
    for name in frame.columns:
        expected = [int(v) if isinstance(v, bool) else v for v in frame[name].to_list()]
        found = read(header, block, "all", name)
        np.testing.assert_equal(found, expected, err_msg=name)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 255), max_size=9), st.text(max_size=8)),
        max_size=20,
    )
)
def test_round_trip_holds_for_any_rows(rows):
    schema = {"number": pl.UInt32, "bytes": pl.List(pl.UInt8), "text": pl.String}
    clean = [(a, b, wire.clean_text(c)) for a, b, c in rows]
    header, block = wire.pack({"t": pl.DataFrame(clean, schema=schema, orient="row")})
    for at, name in enumerate(schema):
        assert read(header, block, "t", name) == [row[at] for row in clean]
    assert all(c["offset"] % 8 == 0 for c in header["tables"]["t"]["columns"])


@pytest.mark.parametrize(("value", "dtype"), [(2**32, pl.UInt64), (2**31, pl.Int64), (-(2**31) - 1, pl.Int64)])
def test_integers_beyond_32_bits_are_refused(value, dtype):
    frame = pl.DataFrame({"rows": [0, value]}, schema={"rows": dtype})
    with pytest.raises(WidgetError, match=r"t\.rows holds .*whole numbers between"):
        wire.pack({"t": frame})


def test_missing_numbers_and_unknown_types_are_refused_with_the_column():
    with pytest.raises(WidgetError, match=r"t\.n misses 1 numbers"):
        wire.pack({"t": pl.DataFrame({"n": [1, None]})})
    with pytest.raises(WidgetError, match=r"t\.d has type Date"):
        wire.pack({"t": pl.DataFrame({"d": [None]}, schema={"d": pl.Date})})


def test_quantise_keeps_what_is_active_visible_and_the_ends_exact():
    found = wire.quantise(np.array([0.0, 1e-9, 5.0, 10.0, 12.0]), 0.0, 10.0)
    assert found.tolist() == [0, 1, 128, 255, 255]
    assert wire.quantise(np.array([1.0]), 0.0, 0.0).tolist() == [0]


def test_thumbs_can_be_left_out_or_changed_and_keep_their_places():
    header, block = wire.pack_thumbs([b"aa", b"", b"bbb"])
    assert header == {"ends": [2, 2, 5]}
    assert wire.replace_thumbs(header, block, lambda thumb: thumb.upper()) == (header, b"AABBB")
    assert wire.replace_thumbs(header, block, lambda _: b"") == ({"ends": [0, 0, 0]}, b"")


def test_text_becomes_storable_and_visible():
    assert wire.clean_text(LONE_SURROGATE) == "lone \ufffd surrogate"
    assert wire.visible_text("a\u202eb\n\0\u2066") == "a⟨U+202E⟩b↵␀⟨U+2066⟩"
    assert wire.visible_text("👩\u200d🔬") == "👩\u200d🔬"


if __name__ == "__main__":
    for name, made in fixtures().items():
        (FIXTURES / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
