"""Words to name latents with: lists that are shipped, English by frequency, CelebA's attributes, or the user's own.

Owns the words and the texts that stand for them. Embedding them is the work of `nb_sae.concepts`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from nb_sae.data.captions import ANTONYMS, REMAINDER_PHRASES, SYNONYMS, sentence
from nb_sae.errors import ConfigError, InputError, InputNotFoundError, MissingDependencyError, closest

NAMED = ("demo", "celeba", "english-20k")
_ENGLISH = re.compile(r"english-(\d+)k")
MOST_ENGLISH_K = 100

CELEBA: Mapping[str, str] = MappingProxyType(
    {
        "5_o_Clock_Shadow": "a five o'clock shadow",
        "Arched_Eyebrows": "arched eyebrows",
        "Attractive": "an attractive face",
        "Bags_Under_Eyes": "bags under the eyes",
        "Bald": "a bald head",
        "Bangs": "bangs",
        "Big_Lips": "big lips",
        "Big_Nose": "a big nose",
        "Black_Hair": "black hair",
        "Blond_Hair": "blond hair",
        "Blurry": "a blurry picture",
        "Brown_Hair": "brown hair",
        "Bushy_Eyebrows": "bushy eyebrows",
        "Chubby": "a chubby face",
        "Double_Chin": "a double chin",
        "Eyeglasses": "eyeglasses",
        "Goatee": "a goatee",
        "Gray_Hair": "gray hair",
        "Heavy_Makeup": "heavy makeup",
        "High_Cheekbones": "high cheekbones",
        "Male": "a man",
        "Mouth_Slightly_Open": "a slightly open mouth",
        "Mustache": "a mustache",
        "Narrow_Eyes": "narrow eyes",
        "No_Beard": "no beard",
        "Oval_Face": "an oval face",
        "Pale_Skin": "pale skin",
        "Pointy_Nose": "a pointy nose",
        "Receding_Hairline": "a receding hairline",
        "Rosy_Cheeks": "rosy cheeks",
        "Sideburns": "sideburns",
        "Smiling": "a smile",
        "Straight_Hair": "straight hair",
        "Wavy_Hair": "wavy hair",
        "Wearing_Earrings": "earrings",
        "Wearing_Hat": "a hat",
        "Wearing_Lipstick": "lipstick",
        "Wearing_Necklace": "a necklace",
        "Wearing_Necktie": "a necktie",
        "Young": "a young person",
    }
)
"""CelebA's 40 attributes, each as a phrase that a caption could hold."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Vocabulary:
    """Words, and for each the phrase that is embedded in its place. Made by `vocabulary`."""

    words: tuple[str, ...]
    """What a latent can be called."""
    phrases: tuple[str, ...]
    """What is embedded for each word; often the word itself."""
    name: str
    templates: tuple[str, ...] = ("{}",)
    """Texts with `{}` for the phrase; the embeddings of a word's texts are averaged."""
    meanings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Word → the attribute of labelled data that it means, or `"not "` and the attribute; where it is known."""
    duplicates: int = 0
    """Entries that were dropped because they had come before (upper and lower case are the same)."""
    blank: int = 0
    """Entries that were dropped because nothing was in them."""

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        dropped = f", dropped {self.duplicates:,} duplicates and {self.blank:,} blank" * bool(
            self.duplicates or self.blank
        )
        return f"Vocabulary({self.name!r}: {len(self):,} words × {len(self.templates)} templates{dropped})"

    def texts(self) -> list[str]:
        """Every template of every word, word after word."""
        return [template.replace("{}", phrase) for phrase in self.phrases for template in self.templates]


def vocabulary(
    source: str | os.PathLike[str] | Iterable[str] | Mapping[str, str] | Vocabulary,
    *,
    templates: Sequence[str] | None = None,
) -> Vocabulary:
    """Words to name latents with.

    Args:
        source: `"demo"`, the words and phrases of the drawn faces' captions, denials included; `"celeba"`, its 40
            attributes as phrases; `"english-20k"` (or another number of thousands), the most frequent English words
            of letters only, from the package wordfreq, which carries its list; a text file, one word or phrase per
            line; a list; or a mapping from word to the phrase that stands for it.
        templates: Texts with `{}`, such as `"a photo of {}"`; a word's embedding is the mean over them.

    Raises:
        InputNotFoundError: neither a known name nor a file.
        InputError: something that is not text, or nothing is left.
        ConfigError: a template without `{}`.
        MissingDependencyError: English words are asked for and wordfreq is not installed.
    """
    if isinstance(source, Vocabulary):
        found = source
    elif isinstance(source, Mapping):
        found = _cleaned(list(source.items()), "given")
    elif isinstance(source, str | os.PathLike):
        found = _by_name_or_file(os.fspath(source))
    elif isinstance(source, Iterable):
        found = _cleaned([(entry, entry) for entry in source], "given")
    else:
        raise InputError(
            f"vocabulary() got a {type(source).__name__}. Give {', '.join(map(repr, NAMED))}, a text file, a list of "
            "words, or a mapping from word to phrase."
        )
    return found if templates is None else replace(found, templates=_checked(templates))


def _by_name_or_file(source: str) -> Vocabulary:
    if source == "demo":
        return _demo()
    if source == "celeba":
        return Vocabulary(
            words=tuple(CELEBA), phrases=tuple(CELEBA.values()), name="celeba", meanings={name: name for name in CELEBA}
        )
    english = _ENGLISH.fullmatch(source)
    if english:
        return _english(int(english[1]))
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputNotFoundError(
            f"vocabulary {source!r} is neither a known name nor a file. {closest(source, NAMED)}"
            f"Give {', '.join(map(repr, NAMED))}, a text file with one word per line, or a list of words."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error}). Save it as UTF-8, one word per line.") from None
    return _cleaned([(line, line) for line in lines], path.name)


def _demo() -> Vocabulary:
    """The phrases of the caption grammar, each embedded as the shortest caption that holds it."""
    meanings = {phrase: name for name, phrases in SYNONYMS.items() for phrase in phrases}
    meanings |= {phrase: f"not {name}" for name, phrases in ANTONYMS.items() for phrase in phrases}
    words = (*meanings, *(phrase for phrases in REMAINDER_PHRASES.values() for phrase in phrases))
    return Vocabulary(
        words=words,
        phrases=tuple(sentence([phrase]) for phrase in words),
        name="demo",
        meanings=MappingProxyType(meanings),
    )


def _english(thousands: int) -> Vocabulary:
    if not 1 <= thousands <= MOST_ENGLISH_K:
        raise ConfigError(f"'english-{thousands}k' is outside 1k to {MOST_ENGLISH_K}k. Use for example 'english-20k'.")
    try:
        from wordfreq import top_n_list  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            "English words by frequency need 'wordfreq', which is not installed. Run: pip install 'nb-sae[words]'. "
            "Or give vocabulary() a text file with one word per line."
        ) from error
    count = thousands * 1000
    # About 2.5 % of the list are numbers, abbreviations and forms such as "it's"; single letters mean nothing alone.
    listed = top_n_list("en", count + count // 10 + 200)
    words = [word for word in listed if len(word) > 1 and word.isascii() and word.isalpha()][:count]
    return _cleaned([(word, word) for word in words], f"english-{thousands}k")


def _cleaned(entries: Sequence[tuple[object, object]], name: str) -> Vocabulary:
    kept: dict[str, tuple[str, str]] = {}
    blank = 0
    for number, (word, phrase) in enumerate(entries):
        if not isinstance(word, str) or not isinstance(phrase, str):
            wrong = word if not isinstance(word, str) else phrase
            raise InputError(f"Entry {number} of the vocabulary is {wrong!r}; expected text. Give a list of words.")
        word, phrase = " ".join(word.split()), " ".join(phrase.split())
        if not word or not phrase:
            blank += 1
            continue
        kept.setdefault(word.casefold(), (word, phrase))
    if not kept:
        raise InputError(f"The vocabulary {name!r} holds no word ({blank:,} blank entries). Give at least two words.")
    return Vocabulary(
        words=tuple(word for word, _ in kept.values()),
        phrases=tuple(phrase for _, phrase in kept.values()),
        name=name,
        duplicates=len(entries) - blank - len(kept),
        blank=blank,
    )


def _checked(templates: Sequence[str]) -> tuple[str, ...]:
    listed = (templates,) if isinstance(templates, str) else tuple(templates)
    if not listed:
        raise ConfigError("templates=[] gives no texts. Leave it out, or give texts such as 'a photo of {}'.")
    for template in listed:
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(f"Template {template!r} has no {{}} for the word. Write for example 'a photo of {{}}'.")
    return listed
