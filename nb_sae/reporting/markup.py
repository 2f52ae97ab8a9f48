"""Markdown and HTML from a notebook, reduced to elements that can do nothing."""

from __future__ import annotations

import base64
import html
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import bleach
import mistune
from bleach.css_sanitizer import CSSSanitizer
from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES, Token
from pygments.util import ClassNotFound

from nb_sae.reporting.mathml import mathml
from nb_sae.reporting.pictures import Treatment, data_uri, decode_base64, treat_data_uri
from nb_sae.reporting.text import Scrubber, printable, words

_TAGS = words(
    "a abbr b blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3 "
    "h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th "
    "thead time tr tt u ul var progress meter"
)
_ATTRIBUTES = {
    "*": frozenset({"title", "align", "style", "lang", "dir"}),
    "a": frozenset({"href"}),
    "img": frozenset({"src", "alt", "width", "height"}),
    "td": frozenset({"colspan", "rowspan"}),
    "th": frozenset({"colspan", "rowspan", "scope"}),
    "ol": frozenset({"start"}),
    "details": frozenset({"open"}),
    "progress": frozenset({"value", "max"}),
    "meter": frozenset({"value", "min", "max"}),
}
_CSS = CSSSanitizer(
    allowed_css_properties=words(
        "color background-color text-align vertical-align font-weight font-style text-decoration white-space width "
        "max-width min-width height padding padding-left padding-right margin-left margin-right border-left opacity "
        "display gap"
    ),
    allowed_svg_properties=frozenset(),
)
# Their content is code or a page of its own, not text for a reader.
_DROPPED = frozenset({"script", "style", "iframe", "object", "embed", "template", "noscript", "svg", "math", "head"})
_UNSAFE_CSS = re.compile(r"url|expression|@import|image|fixed|absolute|sticky", re.IGNORECASE)


def _attribute_allowed(tag: str, name: str, value: str) -> bool:
    if name not in _ATTRIBUTES["*"] | _ATTRIBUTES.get(tag, frozenset()):
        return False
    if name == "style":
        return not _UNSAFE_CSS.search(value)
    if tag == "img" and name == "src":
        return value.startswith("data:image/")
    if tag == "a" and name == "href":
        return bool(re.match(r"(?:https?://|mailto:|#[\w-]+$)", value, re.IGNORECASE))
    return True


def _cleaner(*, strip: bool) -> bleach.Cleaner:
    return bleach.Cleaner(
        tags=_TAGS,
        attributes=_attribute_allowed,
        protocols=frozenset({"http", "https", "mailto", "data"}),
        strip=strip,
        strip_comments=strip,
        css_sanitizer=_CSS,
    )


class _Drop(HTMLParser):
    """HTML without the elements whose content is not text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self.inside: str | None = None
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if self.inside is None and tag in _DROPPED:
            self.inside, self.depth = tag, 1
        elif self.inside == tag:
            self.depth += 1
        elif self.inside is None:
            self.kept.append(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if self.inside is None and tag not in _DROPPED:
            self.kept.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if self.inside == tag:
            self.depth -= 1
            self.inside = self.inside if self.depth else None
        elif self.inside is None:
            self.kept.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self.inside is None:
            self.kept.append(data)

    def handle_entityref(self, name: str) -> None:
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.handle_data(f"&#{name};")


@dataclass
class Heading:
    """An entry of the table of contents."""

    level: int
    anchor: str
    label: str
    """HTML that holds text and MathML only."""


@dataclass
class Markup:
    """Turns markdown and HTML of one notebook into HTML that runs nothing and asks for nothing."""

    folder: Path
    """Where pictures named in markdown are looked for; nothing outside it is read."""
    scrub: Scrubber
    treatment: Treatment = "keep"
    headings: list[Heading] = field(default_factory=list)

    def html(self, text: str) -> str:
        """An HTML output: tables, lists and text formatting are kept, the rest is dropped."""
        dropper = _Drop()
        dropper.feed(printable(text))
        dropper.close()
        return self._pictures(_cleaner(strip=True).clean(self.scrub("".join(dropper.kept))))

    def markdown(self, source: str, attachments: Mapping[str, Mapping[str, str]] | None = None) -> str:
        """A markdown cell. HTML in it that is not allowed is shown as text."""
        renderer = _Renderer(self._picture_finder(attachments or {}))
        render = mistune.create_markdown(
            escape=False, renderer=renderer, plugins=["table", "strikethrough", "footnotes", "task_lists", "math"]
        )
        raw = render(self.scrub(printable(source)))
        clean = self._pictures(_cleaner(strip=False).clean(str(raw)))
        clean = renderer.put_back(clean)
        return re.sub(r"<h([1-6])>(.*?)</h\1>", self._heading, clean, flags=re.DOTALL)

    def _heading(self, found: re.Match[str]) -> str:
        level, inner = int(found.group(1)), found.group(2)
        label = re.sub(r"<(?!/?(?:math|m[a-z]+|code)\b)[^>]*>", "", inner)
        words = re.sub(r"[^\w]+", "-", html.unescape(re.sub(r"<[^>]*>", "", inner)).lower()).strip("-")
        anchor = f"s-{words[:60] or 'section'}"
        taken = {heading.anchor for heading in self.headings}
        number, unique = 2, anchor
        while unique in taken:
            unique, number = f"{anchor}-{number}", number + 1
        self.headings.append(Heading(level, unique, label))
        return f'<h{level} id="{html.escape(unique)}">{inner}</h{level}>'

    def _pictures(self, clean: str) -> str:
        """Treat the pictures of sanitised HTML; what is no picture becomes its alternative text."""

        def change(found: re.Match[str]) -> str:
            source = re.search(r'\bsrc="([^"]*)"', found.group())
            alternative = re.search(r'\balt="([^"]*)"', found.group())
            treated = treat_data_uri(html.unescape(source.group(1)), self.treatment) if source else None
            if source is None or treated is None:
                return f"<em>[picture{': ' + alternative.group(1) if alternative else ''}]</em>"
            return found.group().replace(source.group(1), treated)

        clean = re.sub(r"<img\b[^>]*>", change, clean)
        return re.sub(r'<a href="(?!#)', '<a rel="noopener noreferrer" href="', clean)

    def _picture_finder(self, attachments: Mapping[str, Mapping[str, str]]) -> Callable[[str], str]:
        """A function from the address in `![…](address)` to a `data:` address, or to nothing."""

        def find(address: str) -> str:
            if address.startswith("data:image/"):
                return address
            if address.startswith("attachment:"):
                for encoded in attachments.get(address.removeprefix("attachment:"), {}).values():
                    return data_uri(decode_base64(encoded) or b"", "keep") or ""
                return ""
            if re.match(r"[a-z][a-z0-9+.-]*:", address, re.IGNORECASE):
                return ""
            try:
                path = (self.folder / unquote(address)).resolve()
                if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
                    return ""
                return data_uri(path.read_bytes(), "keep") or ""
            except (OSError, ValueError, RuntimeError):  # not to be read, no name of a file, links in a circle
                return ""

        return find


class _Renderer(mistune.HTMLRenderer):
    """Adds highlighted code, formulas and pictures, each put in after the sanitiser has run."""

    def __init__(self, find_picture: Callable[[str], str]) -> None:
        super().__init__(escape=False, allow_harmful_protocols=True)
        self._find_picture = find_picture
        # The notebook cannot know the word, so it cannot ask for a piece.
        self._word = f"nbsae{secrets.token_hex(12)}x"
        self._pieces: list[str] = []

    def _later(self, piece: str) -> str:
        self._pieces.append(piece)
        return f"{self._word}{len(self._pieces) - 1}z"

    def put_back(self, clean: str) -> str:
        return re.sub(rf"{self._word}(\d+)z", lambda found: self._pieces[int(found.group(1))], clean)

    def block_code(self, code: str, info: str | None = None) -> str:
        language = (info or "").split()[0] if (info or "").split() else "text"
        return f"<div>{self._later(highlight(code.rstrip(chr(10)), language))}</div>\n"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        del title
        source = self._find_picture(url)
        if not source:
            return f"<em>[picture: {mistune.escape(text or url)}]</em>"
        return f'<img src="{mistune.escape(source)}" alt="{mistune.escape(text)}">'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        badge = re.fullmatch(r"<em>\[picture: (.*)\]</em>", text)  # one that lies elsewhere: its words are the link
        return super().link(badge[1] if badge else text, url, title)

    def block_math(self, text: str) -> str:
        formula = mathml(text, block=True) or f'<span class="formula">{html.escape(text.strip())}</span>'
        return f"<p>{self._later(formula)}</p>\n"

    def inline_math(self, text: str) -> str:
        return self._later(mathml(text) or f'<span class="formula">{html.escape(text)}</span>')


def highlight(code: str, language: str = "python") -> str:
    """A `<pre class="code">` with one span per token; the classes are Pygments' short names."""
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False, ensurenl=False)
    out = []
    for kind, value in lex(printable(code), lexer):
        name = kind
        while name not in STANDARD_TYPES:
            name = name.parent if name.parent is not None else Token
        short, text = STANDARD_TYPES[name], html.escape(value, quote=False)
        out.append(f'<span class="{short}">{text}</span>' if short and value.strip() else text)
    return f'<pre class="code" dir="ltr"><code>{"".join(out)}</code></pre>'


def svg_picture(source: str, label: str) -> str:
    """An SVG as a picture: inside `<img>` no script of it runs and nothing that it names is fetched."""
    encoded = base64.b64encode(printable(source).encode()).decode()
    return f'<img alt="{html.escape(label)}" src="data:image/svg+xml;base64,{encoded}">'
