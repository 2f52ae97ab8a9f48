"""The part of LaTeX that explanations of a method need, as MathML; everything else stays text."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ",
    "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "ϕ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω",
    "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ",
    "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
_SYMBOLS = {
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "sim": "∼", "equiv": "≡",
    "in": "∈", "notin": "∉", "subset": "⊂", "cdot": "·", "times": "×", "pm": "±", "to": "→", "rightarrow": "→",
    "mapsto": "↦", "infty": "∞", "partial": "∂", "nabla": "∇", "ldots": "…", "dots": "…", "cdots": "⋯", "mid": "|",
    "lVert": "‖", "rVert": "‖", "Vert": "‖", "|": "‖", "lvert": "|", "rvert": "|", "forall": "∀", "exists": "∃",
    "odot": "⊙", "circ": "∘", "top": "⊤", "ell": "ℓ", "ll": "≪", "gg": "≫", "propto": "∝", "cup": "∪", "cap": "∩",
    "{": "{", "}": "}", "%": "%", "_": "_", "#": "#", "&": "&", "$": "$", "langle": "⟨", "rangle": "⟩", "prime": "′",
}  # fmt: skip
_LARGE = {"sum": "∑", "prod": "∏", "int": "∫"}
_WORDS = {"log", "exp", "max", "min", "arg", "argmax", "argmin", "cos", "sin", "tanh", "Pr", "det", "dim", "sup", "inf"}
_SPACES = {",": "0.17em", ";": "0.28em", ":": "0.22em", " ": "0.25em", "quad": "1em", "qquad": "2em", "!": "0"}
_ACCENTS = {"hat": "^", "bar": "¯", "tilde": "~", "vec": "→", "overline": "¯", "widehat": "^", "dot": "˙"}
_STYLES = {"mathrm", "text", "mathbf", "operatorname", "mathcal", "mathbb", "textrm", "mathit", "boldsymbol"}
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|[A-Za-z]|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_DOUBLE = dict(zip("RNZCQEP", "ℝℕℤℂℚ𝔼ℙ", strict=True))


class _UnknownLatexError(Exception):
    """The formula needs more LaTeX than is understood here."""


def mathml(latex: str, *, block: bool = False) -> str | None:
    """A `<math>` element, or None if the formula holds something that is not understood."""
    try:
        parser = _Parser([token for token in _TOKEN.findall(latex.strip()) if not token.isspace()], latex)
        body = parser.row(until=None)
    except (_UnknownLatexError, RecursionError):
        return None
    display = ' display="block"' if block else ""
    return f"<math{display}><mrow>{body}</mrow></math>"


@dataclass
class _Parser:
    tokens: list[str]
    source: str
    at: int = 0

    def row(self, until: str | None) -> str:
        """Everything up to a closing token."""
        pieces: list[str] = []
        while self.at < len(self.tokens):
            if self.tokens[self.at] == until:
                self.at += 1
                return "".join(pieces)
            pieces.append(self.scripted())
        if until is not None:
            raise _UnknownLatexError(until)
        return "".join(pieces)

    def scripted(self) -> str:
        """One atom with what is below and above it."""
        name = self.tokens[self.at]
        base = self.atom()
        below = above = ""
        while self.at < len(self.tokens) and self.tokens[self.at] in ("_", "^", "'"):
            mark = self.tokens[self.at]
            self.at += 1
            if mark == "'":
                above += "<mo>′</mo>"
            elif mark == "_":
                below = self.atom()
            else:
                above += self.atom()
        if not below and not above:
            return base
        limits = name.lstrip("\\") in {"sum", "prod", "max", "min", "argmax", "argmin", "arg"}
        under, over, both = ("munder", "mover", "munderover") if limits else ("msub", "msup", "msubsup")
        above = f"<mrow>{above}</mrow>" if above else ""
        if below and above:
            return f"<{both}>{base}{below}{above}</{both}>"
        return f"<{under}>{base}{below}</{under}>" if below else f"<{over}>{base}{above}</{over}>"

    def atom(self) -> str:
        if self.at >= len(self.tokens):
            raise _UnknownLatexError("end")
        token = self.tokens[self.at]
        self.at += 1
        if token == "{":
            return f"<mrow>{self.row('}')}</mrow>"
        if token.startswith("\\"):
            return self.command(token[1:])
        if token in ("}", "_", "^", "&", "#", "$"):
            raise _UnknownLatexError(token)
        if token.isalpha():
            return f"<mi>{html.escape(token)}</mi>"
        if token[0].isdigit():
            return f"<mn>{token}</mn>"
        stretchy = ' stretchy="false"' if token in "()[]|" else ""
        return f"<mo{stretchy}>{html.escape({'-': '−', '*': '∗'}.get(token, token))}</mo>"

    def command(self, name: str) -> str:
        if name in _GREEK:
            return f"<mi>{_GREEK[name]}</mi>"
        if name in _LARGE:
            return f"<mo>{_LARGE[name]}</mo>"
        if name in _SYMBOLS:
            return f"<mo>{html.escape(_SYMBOLS[name])}</mo>"
        if name in _WORDS:
            return f"<mi>{name}</mi>"
        if name in _SPACES:
            return f'<mspace width="{_SPACES[name]}"></mspace>'
        if name in ("frac", "tfrac", "dfrac"):
            return f"<mfrac>{self.atom()}{self.atom()}</mfrac>"
        if name == "sqrt":
            return f"<msqrt>{self.atom()}</msqrt>"
        if name in _ACCENTS:
            return f'<mover accent="true">{self.atom()}<mo>{_ACCENTS[name]}</mo></mover>'
        if name in ("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr"):
            return "<mo></mo>" if self.tokens[self.at : self.at + 1] == ["."] and self.skip() else self.atom()
        if name in _STYLES:
            return self.styled(name)
        raise _UnknownLatexError(name)

    def skip(self) -> bool:
        self.at += 1
        return True

    def styled(self, name: str) -> str:
        """Letters in another style; the argument is read as text."""
        if self.tokens[self.at : self.at + 1] != ["{"]:
            words = self.tokens[self.at]
            self.at += 1
        else:
            end = self.tokens.index("}", self.at) if "}" in self.tokens[self.at :] else -1
            if end < 0:
                raise _UnknownLatexError(name)
            words = "".join(self.tokens[self.at + 1 : end])
            self.at = end + 1
        if "\\" in words or "_" in words or "^" in words or "{" in words:
            raise _UnknownLatexError(name)
        if name == "mathbb":
            words = "".join(_DOUBLE.get(letter, letter) for letter in words)
        if name in ("text", "textrm"):
            found = re.search(r"\\text(?:rm)?\{([^{}\\]*)\}", self.source)
            words = found.group(1) if found and found.group(1).replace(" ", "") == words else words
            return f"<mtext>{html.escape(words)}</mtext>"
        bold = ' style="font-weight:bold"' if name in ("mathbf", "boldsymbol") else ""
        upright = ' mathvariant="normal"' if name in ("mathrm", "operatorname", "mathbf") else ""
        return f"<mi{upright}{bold}>{html.escape(words)}</mi>"
