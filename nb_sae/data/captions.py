"""Captions of drawn faces: a small grammar with synonyms, and the zero-shot prompts in the same words.

Owns the words. `Male` has none: nothing in a caption is about it but through what it does to the other attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np

from nb_sae.data.face_table import DRAWN, GROUPS

SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Eyeglasses": ("glasses", "eyeglasses", "spectacles"),
        "Smiling": ("smiling", "happy", "a smile"),
        "Wearing_Hat": ("a hat", "headwear"),
        "Bald": ("bald", "hairless", "a bald head"),
        "Black_Hair": ("black hair", "raven hair"),
        "Blond_Hair": ("blond hair", "blonde hair", "yellow hair"),
        "Brown_Hair": ("brown hair", "chestnut hair"),
        "Gray_Hair": ("gray hair", "grey hair", "silver hair"),
        "Straight_Hair": ("straight hair", "sleek hair"),
        "Wavy_Hair": ("wavy hair", "curly hair", "curls"),
        "Bangs": ("bangs", "a fringe"),
        "No_Beard": ("no beard", "clean-shaven", "beardless"),
        "5_o_Clock_Shadow": ("stubble", "a five o'clock shadow"),
        "Goatee": ("a goatee", "a chin beard"),
        "Mustache": ("a mustache", "a moustache"),
        "Bushy_Eyebrows": ("bushy eyebrows", "thick eyebrows"),
        "Arched_Eyebrows": ("arched eyebrows", "raised eyebrows"),
        "Wearing_Lipstick": ("lipstick", "painted lips"),
        "Heavy_Makeup": ("heavy makeup", "eye shadow"),
        "Wearing_Earrings": ("earrings", "ear jewelry"),
        "Wearing_Necklace": ("a necklace", "beads"),
        "Wearing_Necktie": ("a necktie", "a tie"),
        "Rosy_Cheeks": ("rosy cheeks", "pink cheeks", "a blush"),
        "Mouth_Slightly_Open": ("an open mouth", "a slightly open mouth", "parted lips"),
        "Narrow_Eyes": ("narrow eyes", "squinting eyes"),
        "Big_Nose": ("a big nose", "a large nose"),
        "Pale_Skin": ("pale skin", "pale"),
        "Young": ("young", "youthful"),
        "Chubby": ("chubby", "a round face"),
    }
)
"""How a caption may say that an attribute holds; the first is the plainest."""

ANTONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Eyeglasses": ("no glasses", "no eyeglasses"),
        "Smiling": ("serious", "unsmiling"),
        "Wearing_Hat": ("no hat", "a bare head"),
        "Bald": ("hair",),
        "Bangs": ("a bare forehead", "no bangs"),
        "No_Beard": ("facial hair", "a beard"),
        "Bushy_Eyebrows": ("thin eyebrows",),
        "Arched_Eyebrows": ("flat eyebrows",),
        "Wearing_Lipstick": ("no lipstick",),
        "Heavy_Makeup": ("no makeup",),
        "Wearing_Earrings": ("no earrings",),
        "Rosy_Cheeks": ("plain cheeks",),
        "Mouth_Slightly_Open": ("a closed mouth",),
        "Narrow_Eyes": ("wide eyes", "round eyes"),
        "Big_Nose": ("a small nose",),
        "Pale_Skin": ("tanned skin", "dark skin"),
        "Young": ("old", "elderly", "wrinkles"),
        "Chubby": ("slim", "a thin face"),
    }
)
"""How a caption may say that an attribute does not hold."""

REMAINDER_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hair": ("dyed hair", "colourful hair"),
        "beard": ("a full beard",),
    }
)
"""How a caption may name a group's remainder (`face_table.REMAINDERS`)."""

NOUNS = ("face", "person", "portrait", "cartoon face", "drawing of a face")

ADJECTIVES = frozenset({
    "smiling", "happy", "bald", "hairless", "clean-shaven", "beardless", "pale", "young", "youthful", "chubby",
    "serious", "unsmiling", "old", "elderly", "slim",
})  # fmt: skip


def sentence(phrases: Collection[str], noun: str = "face") -> str:
    """One caption of the phrases: adjectives before the noun, the rest after "with"."""
    before = [phrase for phrase in phrases if phrase in ADJECTIVES]
    after = [phrase for phrase in phrases if phrase not in ADJECTIVES]
    words = " ".join([*before, noun])
    text = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    if not after:
        return text
    listed = after[0] if len(after) == 1 else f"{', '.join(after[:-1])} and {after[-1]}"
    return f"{text} with {listed}"


def caption(has: Collection[str], rng: np.random.Generator) -> str:
    """A caption that mentions a random part of what is (and, less often, is not) there, in any order.

    Args:
        has: CelebA names of the attributes that hold.
        rng: Chooses what is mentioned and how.
    """
    said = [SYNONYMS[name] for name in DRAWN if name in has]
    unsaid = [phrases for name, phrases in ANTONYMS.items() if name not in has]
    unsaid += [phrases for group, phrases in REMAINDER_PHRASES.items() if not set(GROUPS[group]) & set(has)]
    chance = rng.random(2 + len(said) + len(unsaid))
    # What holds is mentioned about three times as readily as what does not.
    order = np.argsort(chance[2:] ** np.repeat((1.0, 0.35), (len(said), len(unsaid))))
    count = 2 + int(chance[0] * 8)
    every = [*said, *unsaid]
    words = [every[i][int(rng.integers(len(every[i])))] for i in order[:count]]
    return sentence(words, NOUNS[int(chance[1] * len(NOUNS))])


PROMPTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {name: (sentence([SYNONYMS[name][0]]), sentence([ANTONYMS[name][0]] if name in ANTONYMS else [])) for name in DRAWN}
)
"""Attribute → (positive, negative) zero-shot prompt; the negative one is the bare "a face" where no word denies it."""
