"""The accessibility checks of axe-core, run inside a page."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

SCRIPT = Path(__file__).resolve().parents[2] / "widgets_js" / "node_modules" / "axe-core" / "axe.min.js"

_RUN = """async ([within, without, rules]) => {
    const what = { include: [within], ...(without && { exclude: [without] }) };
    const only = rules.length ? { runOnly: rules } : {};
    const { violations } = await axe.run(what, { resultTypes: ['violations'], ...only });
    return violations.filter(({ impact }) => impact === 'serious' || impact === 'critical').flatMap(({ id, nodes }) =>
        nodes.map(({ html, any, all, none }) =>
            `${id}: ${[...any, ...all, ...none].map(({ message }) => message)} in ${html.slice(0, 160)}`));
}"""


def findings(page: Page, within: str, *, without: str = "", rules: tuple[str, ...] = ()) -> list[str]:
    """What axe calls serious or critical inside `within`, one line each; `rules` are all where none is named.

    Raises:
        FileNotFoundError: axe-core is not installed; the message says how it gets there.
    """
    if not SCRIPT.exists():
        raise FileNotFoundError("axe-core is missing from widgets_js/node_modules. Run: npm ci (in widgets_js)")
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(SCRIPT.read_text(encoding="utf-8"))
    return page.evaluate(_RUN, [within, without, list(rules)])
