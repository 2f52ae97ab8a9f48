"""What every dashboard shares: its built script, answers to the browser's requests, and the static picture.

A dashboard is displayed as two outputs: first a picture in HTML, tagged with the widget's id, then the live view,
which hides the picture once it has drawn. Hosts that run no script keep the picture.
"""

from __future__ import annotations

import base64
import contextlib
import html
import threading
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

import nb_sae
from nb_sae.errors import NbSaeError, WidgetError
from nb_sae.facts import KEY, facts_of_notebook
from nb_sae.widgets import runtime, wire
from nb_sae.widgets.hearing import hear_while_busy

STATIC = Path(__file__).parent / "static"
_VIEW = "application/vnd.jupyter.widget-view+json"
MOST_CHARS = 100_000
"""A longer text in a request is refused before anything looks at it; a field's own limit may be lower."""


def read_static(name: str) -> str:
    """A built script or style sheet. Raises `WidgetError` where it was not built."""
    try:
        return (STATIC / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WidgetError(
            f"The dashboard's file {name} is not built; a source checkout does not hold it. "
            "Run: make widgets (needs Node 20 or later), or install the wheel, which carries it."
        ) from None


def show(*widgets: Any) -> None:
    """Display dashboards, each with its static picture first. Anything else is displayed as IPython does."""
    from IPython.display import display

    for widget in widgets:
        display(widget)


class Dashboard(anywidget.AnyWidget):
    """Base of the dashboards. Everything a saved view shows is in synced traits; requests only add to it.

    A subclass names its built files, answers `_respond`, draws `_draw_picture` and says what it shows in `_summary`.
    """

    _dashboard = ""
    """Stem of the files in `static/`."""

    _selecting: tuple[str, ...] = ("latent",)
    """The traits that say what is chosen."""

    twin = traitlets.Unicode(help="Id of the static picture to hide; the widget's own id.").tag(sync=True)
    runtime = traitlets.Unicode(help="The hidden widget with its script; empty: it carries its own.").tag(sync=True)
    kernel_side = traitlets.Dict(help="Format and version of the kernel side; the script checks them.").tag(sync=True)
    linked = traitlets.Dict(help="The link it is in, `{group, sites: {site: latents}}`; empty: in none.").tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        # IPython makes a thread per subshell: a request may be answered while a cell runs.
        self._lock = threading.RLock()
        self._pictures: dict[object, bytes] = {}
        self.link: Any = None
        """The `Link` it is in; None: in none."""
        self._shared = runtime.shared_script(self._dashboard, read_static)
        model_id = uuid.uuid4().hex
        own = {
            "twin": model_id,
            "runtime": runtime.reference(self._shared),
            "kernel_side": {"wire": wire.WIRE_VERSION, "nb_sae": nb_sae.__version__},
        }
        super().__init__(model_id=model_id, **own, **traits)
        hear_while_busy(self)
        self.on_msg(self._on_request)

    def __setattr__(self, name: str, value: Any) -> None:
        """Fails at the line that sets a trait to what it cannot be, tables that are damaged included.

        Raises:
            WidgetError: type, header or length are not what the trait needs.
        """
        self._check_tables(name, value)
        try:
            super().__setattr__(name, value)
        except traitlets.TraitError:
            trait = self.traits()[name]
            given = f"{type(self).__name__}.{name} was set to {_short(repr(value))}, a {type(value).__name__}."
            tables = isinstance(trait, traitlets.Dict | traitlets.Bytes | traitlets.List)
            advice = " To show something else, make a dashboard of it." if tables else ""
            raise WidgetError(f"{given} Expected {trait.info()}.{advice}") from None

    def set_trait(self, name: str, value: Any) -> None:
        """The same for what the browser sets."""
        self._check_tables(name, value)
        super().set_trait(name, value)

    def _check_tables(self, name: str, value: Any) -> None:
        if name.endswith("_header") and self.has_trait(name):
            wire.check_header(value)
        elif isinstance(value, bytes) and self.has_trait(f"{name}_header"):
            wire.check_block(getattr(self, f"{name}_header"), value)

    def set_state(self, sync_data: Any) -> None:
        """Take what the browser chose; where that cannot be, the browser is told and shown what holds."""
        before = {name: self._trait_values[name] for name in sync_data if name in self._trait_values}
        try:
            super().set_state(sync_data)
        except (WidgetError, traitlets.TraitError) as error:
            self._trait_values.update(before)
            self.send_state(list(before))
            self.send({"refused": _explain(error)})

    @property
    def _esm(self) -> str:
        return read_static("shared.js" if self._shared else f"{self._dashboard}.js")

    @property
    def _css(self) -> str:
        return "" if self._shared else read_static(f"{self._dashboard}.css")

    # What a subclass gives

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Answer one request. Raises `WidgetError` for what cannot be answered."""
        raise WidgetError(
            f"{type(self).__name__} answers no request of kind {_short(repr(kind))}. Update nb_sae and reload the page."
        )

    def _draw_picture(self) -> bytes:
        """PNG of what the dashboard shows now."""
        raise NotImplementedError

    def _picture_key(self) -> object:
        """What the picture depends on; the same key is drawn once."""
        return None

    def _summary(self) -> str:
        """One or two sentences of text for readers without pictures."""
        raise NotImplementedError

    # What links need; a dashboard of one dictionary has it from its analysis

    def _places(self) -> Mapping[str, int | None]:
        """Sites that a selection can be at, each with its number of latents (None: not known).

        The site "" is that of a dashboard that does not know; nothing at all: there is no latent to choose.
        """
        analysis = getattr(self, "analysis", None)
        if analysis is None or not self.has_trait("latent"):
            return {}
        return {analysis.site.name: int(analysis.d_sae)}

    def _selection(self) -> tuple[str, int]:
        """The site and the latent that are chosen, of a dashboard in a link."""
        return next(iter(self.linked["sites"])), self.latent  # type: ignore[attr-defined]

    def _select(self, _site: str, latent: int) -> None:
        """Choose a latent that another dashboard chose; where this one does not show it, nothing changes."""
        with contextlib.suppress(WidgetError, traitlets.TraitError):
            self.latent = latent

    # Requests

    def _on_request(self, _widget: Any, content: Any, _buffers: Any) -> None:
        number = content.get("id") if isinstance(content, dict) else None
        number = number if isinstance(number, int | float | str) and len(str(number)) < 100 else None
        try:
            reply, buffers = self._answer(content)
            self.send({"id": number, **reply}, buffers)
        except BaseException as error:  # an error is an answer: silence would leave the view waiting
            self.send({"id": number, "ok": False, "error": _explain(error)}, [])
            if not isinstance(error, Exception):  # the stop button was pressed while this was computed
                raise

    def _answer(self, content: Any) -> tuple[dict[str, Any], list[bytes]]:
        if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
            raise WidgetError(f"A request is {{id, kind, …}}, got {type(content).__name__}. Reload the page.")
        long = next((len(one) for one in content.values() if isinstance(one, str) and len(one) > MOST_CHARS), 0)
        if long:
            raise WidgetError(f"The text has {long:,} characters; at most {MOST_CHARS:,} are read. Give a shorter one.")
        if content["kind"] == "ping":
            return {"ok": True}, []
        if content["kind"] == "script" and self._shared is not None:
            return {"ok": True, **runtime.as_answer(self._shared)}, []
        with self._lock:
            reply, buffers = self._respond(content["kind"], content)
        return {"ok": True, **reply}, buffers

    # Display

    def picture(self) -> bytes:
        """PNG of what the dashboard shows now, for hosts that run no script."""
        with self._lock:
            key = self._picture_key()
            if key not in self._pictures:
                self._pictures = {key: self._draw_picture()}
            return self._pictures[key]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        data, metadata = found if isinstance(found, tuple) else (found, {})
        # No text/html here: a host without widgets would prefer it to the picture and then strip it.
        data = {**data, "text/plain": self._summary(), "image/png": base64.b64encode(self.picture()).decode("ascii")}
        return data, metadata

    def _ipython_display_(self, **_kwargs: Any) -> None:
        from IPython.display import display

        bundle = self._repr_mimebundle_()
        if bundle is None:
            return
        data, metadata = bundle
        self._show_twin(*self._twin_bundle(data.pop("image/png")))
        display(data, metadata=metadata, raw=True)

    def _twin_bundle(self, png: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The static picture (base64) as an output, and its metadata."""
        source, alt = f"data:image/png;base64,{png}", html.escape(self._summary(), quote=True)
        twin = f'<div data-nbsae="{self.twin}"><img alt="{alt}" src="{source}" width="900"></div>'
        # A report reads there what made the notebook's results; hosts keep it and show nothing of it.
        return {"text/html": twin, "text/plain": self._summary()}, {KEY: facts_of_notebook()}

    def _show_twin(self, bundle: dict[str, str], metadata: dict[str, Any]) -> None:
        """Display the static picture; the live view comes below it."""
        from IPython.display import display

        display(bundle, metadata=metadata, raw=True)

    def __repr__(self) -> str:
        return f"<{self._summary()}>"


def _explain(error: BaseException) -> dict[str, str]:
    if isinstance(error, NbSaeError):
        return {"cause": _short(str(error), 1_000), "fix": "", "details": ""}
    details = "".join(traceback.format_exception(error))
    return {
        "cause": _short(f"{type(error).__name__}: {error}", 1_000),
        "fix": "The kernel could not answer. Run the cell of this dashboard again; if it stays, report the details.",
        "details": details,
    }


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
