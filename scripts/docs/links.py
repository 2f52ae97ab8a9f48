"""Check a built site without a network: every link and anchor leads somewhere, nothing is loaded from elsewhere.

    python scripts/docs/links.py build/site

Addresses of other sites that a reader may click are not visited; that they are written as addresses is checked.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser fetch something when the page opens, and those that wait for a click.
_LOADED = {
    "img": ("src", "srcset"), "script": ("src",), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",), "image": ("href",),
    "use": ("href",), "input": ("src",),
}  # fmt: skip
_LOADED_RELATIONS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "preconnect",
    "dns-prefetch",
    "manifest",
    "prefetch",
}
_CLICKED = {"a": ("href",), "area": ("href",), "form": ("action",), "link": ("href",)}
_CSS_ADDRESS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_INSIDE = ("data:", "blob:", "about:", "javascript:")


@dataclass
class _Read(HTMLParser):
    """Anchors, links and loaded addresses of one page."""

    anchors: set[str] = field(default_factory=set)
    clicked: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    _styled: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if values.get(name))
        self._styled = tag == "style"
        if tag == "link" and set(values.get("rel", "").split()) & _LOADED_RELATIONS:
            self.loaded.append(values.get("href", ""))
            return
        for name in _LOADED.get(tag, ()):
            if values.get(name):
                entries = values[name].split(",") if name == "srcset" else [values[name]]
                self.loaded += [entry.split()[0] for entry in entries if entry.split()]
        if "style" in values:
            self.loaded += addresses_in_css(values["style"])
        self.clicked += [values[name] for name in _CLICKED.get(tag, ()) if values.get(name)]

    def handle_endtag(self, tag: str) -> None:
        self._styled = False

    def handle_data(self, data: str) -> None:
        if self._styled:
            self.loaded += addresses_in_css(data)


def addresses_in_css(text: str) -> list[str]:
    """What a style sheet loads."""
    return [one or other for one, other in _CSS_ADDRESS.findall(text)]


def check_site(site: Path) -> list[str]:
    """What is wrong, one line each: `page: link: why`."""
    site = site.resolve()
    pages = {path: _read(path) for path in sorted(site.rglob("*.html"))}
    problems = [] if pages else [f"{site.name}: no page in it. Build it first: make docs"]
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for link in page.loaded:
            problems += _checked(link, path, site, pages, name, loaded=True)
        for link in page.clicked:
            problems += _checked(link, path, site, pages, name, loaded=False)
    for path in sorted(site.rglob("*.css")):
        for link in addresses_in_css(path.read_text(encoding="utf-8")):
            problems += _checked(link, path, site, pages, path.relative_to(site).as_posix(), loaded=True)
    return list(dict.fromkeys(problems))


def _read(path: Path) -> _Read:
    page = _Read()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def _checked(link: str, path: Path, site: Path, pages: dict[Path, _Read], name: str, *, loaded: bool) -> list[str]:
    link = link.strip()
    if link.startswith(_INSIDE):
        return []
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        if loaded:
            return [f"{name}: {link}: loaded from another site"]
        known = (parts.scheme in ("http", "https") and "." in parts.netloc) or parts.scheme == "mailto"
        return [] if known else [f"{name}: {link}: no address of a page"]
    target = path
    if parts.path:
        # 404.html is served at any depth and therefore counts from the root.
        start = site if parts.path.startswith("/") else path.parent
        target = (start / unquote(parts.path).lstrip("/")).resolve()
        target = target / "index.html" if target.is_dir() else target
        if site not in target.parents:
            return [f"{name}: {link}: outside the site"]
        if not target.is_file():
            return [f"{name}: {link}: no such file"]
    anchor = unquote(parts.fragment)
    if anchor and not loaded and target in pages and anchor != "top" and anchor not in pages[target].anchors:
        return [f"{name}: {link}: no such anchor"]
    return []


def main() -> int:
    """Print every problem; 1 if there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site
    problems = check_site(site)
    for problem in problems:
        print(problem, file=sys.stderr)
    count = len(list(site.rglob("*.html")))
    print(f"{count} pages checked, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
