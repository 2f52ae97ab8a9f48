"""What `steer=` gives, read into what a browser shows: texts or pictures before, after, and of a control.

A callable gives a dict, or what `ns.chain_effect` returns.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from PIL import Image

from nb_sae.errors import WidgetError
from nb_sae.widgets import wire

MODES = ("single", "cumulative")
"""Steer the chosen latent alone, or also those before it on its chain."""
SIDES = ("before", "after", "control")
SIDE = 168
"""Long side of a picture, in pixels."""
ENTRIES = 12
TEXT = 4_000
"""Characters of a generation that are shown."""


def read_request(request: Mapping[str, Any]) -> tuple[float, str]:
    """Strength and mode of a request.

    Raises:
        WidgetError: the browser asked for what cannot be done.
    """
    strength, mode = request.get("strength"), request.get("mode")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -1e6 < strength < 1e6:
        raise WidgetError(f"{strength!r} is no strength to steer with. Give a number.")
    if mode not in MODES:
        raise WidgetError(f"mode={mode!r} is unknown. Choose from {', '.join(MODES)}.")
    return float(strength), str(mode)


def read_answer(answer: Any) -> tuple[dict[str, pl.DataFrame], list[bytes]]:
    """Tables `sides` (side, text, thumb) and `metrics` (name and one number per side), and the pictures.

    Args:
        answer: `{"before": …, "after": …, "control": …, "metrics": {name: {"before": 1.0, …}}, "note": str}`. A side is
            a text, a picture (PIL or encoded), or a list of these; all but `before` and `after` may be missing. Or what
            `ns.chain_effect` returns: anything with its frames `frame` and `generations`.

    Raises:
        WidgetError: `answer` has another form.
    """
    if isinstance(getattr(answer, "frame", None), pl.DataFrame) and hasattr(answer, "generations"):
        answer = _of_effect(answer)
    if not isinstance(answer, Mapping):
        raise WidgetError(
            f"steer= gave {type(answer).__name__}; expected a dict with before and after, or a ChainEffect."
        )
    missing = [side for side in SIDES[:2] if side not in answer]
    if missing:
        raise WidgetError(
            f"steer= gave a dict with {', '.join(map(str, answer)) or 'nothing'}; {', '.join(missing)} is missing."
        )
    lines: list[tuple[str, str, int]] = []
    thumbs: list[bytes] = []
    for side in SIDES:
        for entry in _entries(side, answer.get(side)):
            if isinstance(entry, str):
                text = wire.clean_text(entry)
                lines.append((side, text if len(text) <= TEXT else f"{text[:TEXT]}…", -1))
            else:
                lines.append((side, "", len(thumbs)))
                thumbs.append(entry)
    note = wire.clean_text(answer.get("note") or "")
    tables = {
        "sides": pl.DataFrame(lines, schema={"side": pl.String, "text": pl.String, "thumb": pl.Int32}, orient="row"),
        "metrics": _metrics(answer.get("metrics")),
        "note": pl.DataFrame({"text": [note] if note else []}, schema={"text": pl.String}),
    }
    return tables, thumbs


def _of_effect(effect: Any) -> dict[str, Any]:
    """The generations of a chain's effect, and its measure against the mean of its controls."""
    frame, written, about = effect.frame, effect.generations, effect.about
    chain, controls = (frame.filter(pl.col("kind") == kind) for kind in ("chain", "control"))
    named = f"mean {about.get('measure', 'score')}"
    answer: dict[str, Any] = {
        "before": [], "after": [],
        "metrics": {
            named: {"before": chain["before"][0], "after": chain["after"][0], "control": controls["after"].mean()},
            "what else changed": {"after": chain["cost"][0], "control": controls["cost"].mean()},
        },
    }  # fmt: skip
    if written is not None:
        for side in SIDES:
            lines = written.filter(pl.col(side).is_not_null()).select("prompt", side).iter_rows()
            answer[side] = [f"{prompt}{text.removeprefix(prompt)}" for prompt, text in lines]
    p = about.get("p")
    answer["note"] = f"Toward {', '.join(map(repr, about.get('toward') or ()))}: effect {about['effect']:+.3g}" + (
        "; no controls." if p is None else f", p = {p:.3g} against {controls.height} control chains."
    )
    return answer


def _entries(side: str, given: Any) -> list[str | bytes]:
    if given is None:
        return []
    listed = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
    return [_entry(side, one) for one in listed[:ENTRIES]]


def _entry(side: str, one: Any) -> str | bytes:
    if isinstance(one, str):
        return one
    try:
        if isinstance(one, Image.Image):
            return _encoded(one)
        if isinstance(one, bytes):
            with Image.open(io.BytesIO(one)) as opened:
                return _encoded(opened)
    except OSError as error:
        raise WidgetError(f"steer= gave bytes for {side!r} that are no picture: {error}.") from error
    raise WidgetError(f"steer= gave a {type(one).__name__} for {side!r}; expected texts or pictures.")


def _encoded(picture: Image.Image) -> bytes:
    """Always encoded anew: what a browser gets was written here."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=76, method=4)
    return out.getvalue()


def _metrics(given: Any) -> pl.DataFrame:
    schema = {"name": pl.String, **dict.fromkeys(SIDES, pl.Float64)}
    if given is None:
        return pl.DataFrame(schema=schema)
    if not isinstance(given, Mapping):
        raise WidgetError(f"steer= gave metrics as {type(given).__name__}; expected {{name: {{'before': 1.0, …}}}}.")
    lines = []
    for name, values in given.items():
        if not isinstance(values, Mapping):
            raise WidgetError(f"steer= gave {name!r} as {type(values).__name__}; expected {{'before': 1.0, …}}.")
        try:
            lines.append((wire.clean_text(name), *(_number(values.get(side)) for side in SIDES)))
        except (TypeError, ValueError):
            raise WidgetError(f"steer= gave {dict(values)!r} for {name!r}; expected numbers.") from None
    return pl.DataFrame(lines, schema=schema, orient="row")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
