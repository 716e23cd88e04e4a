"""A small world of places to describe: records of slots, and many styles of saying them. A function of seeds, no file.

Record    a name, a kind and two to four of food, price, area, rate, near. Names and `near` are always *spelled* from
          syllables in capitals, other values sometimes: a model can learn to copy them, never to know them
Plain     free order, three openings, two phrasings per slot
House     a fixed order of the slots and one phrase of common words for each; a style is drawn from its number
Target    one more house style, written by hand. Its order and phrases are unseen in pretraining, its words are not:
          an adapter cannot make a frozen network say a token that was never trained

Slot values stand in a text as they are, so that what was said can be read off exactly (slots.said).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

SYLLABLES = [(c + v).upper() for c in "b d f g k l m n p r s t v z ch sh th br".split() for v in "aeiou"]
VALUES = {
    "kind": "restaurant pub cafe bar diner bakery".split(),
    "food": "italian french indian chinese greek thai english japanese".split(),
    "price": "cheap moderate expensive".split(),
    "area": "riverside centre harbour".split(),
    "rate": "low average high excellent".split(),
}
SLOTS = ["name", "kind", "food", "price", "area", "rate", "near"]
SPELLED = ("name", "near")
OPENINGS = ["{name} is a {kind}.", "the {kind} {name} is here.", "there is a {kind} called {name}."]
PHRASES = {
    "food": ["it serves {} food.", "you can eat {} dishes."],
    "price": ["prices are {}.", "it is a {} place."],
    "area": ["it is in the {}.", "you find it in the {}."],
    "rate": ["guests give a {} score.", "its rating is {}."],
    "near": ["it is close to {}.", "{} is next door."],
}
TARGET = {  # in the order of the text
    "kind": "{} alert:",
    "name": "{}!",
    "rate": "crowd says {}.",
    "near": "look for {}.",
    "area": "where: {} zone.",
    "price": "wallet: {}.",
    "food": "love {}? go.",
}
MARKS = [".", "!", "?", ":"]
_PHRASES = [*OPENINGS, *(p for both in PHRASES.values() for p in both), *TARGET.values()]
WORDS = list(dict.fromkeys(word for phrase in _PHRASES for word in re.findall(r"[a-z]+", re.sub(r"{.*?}", "", phrase))))
STYLES = 48

Record = dict[str, str]


def spelled(rng: np.random.Generator, least: int, most: int) -> str:
    return "".join(rng.choice(SYLLABLES, rng.integers(least, most + 1), replace=False))


def record(rng: np.random.Generator, share: float) -> Record:
    """Slots and values; one that has words of its own is a newly spelled one with probability `share`.

    Every slot is spelled sometimes: of one that never is, a small network learns the most frequent word and no more.
    """

    def value(slot: str) -> str:
        if slot in SPELLED:
            return spelled(rng, 2, 3)
        return spelled(rng, 2, 2) if rng.random() < share else str(rng.choice(VALUES[slot]))

    optional = rng.permutation(SLOTS[2:])[: rng.integers(2, 5)]
    return {slot: value(slot) for slot in ["name", "kind", *map(str, optional)]}


def prompt(rng: np.random.Generator, slots: Record) -> str:
    """The record as a model reads it, in any order: "food thai | name BAKO | kind pub =>"."""
    return " | ".join(f"{slot} {slots[slot]}" for slot in rng.permutation(list(slots))) + " =>"


def plain(rng: np.random.Generator, slots: Record) -> str:
    rest = rng.permutation([slot for slot in slots if slot in PHRASES])
    return " ".join([str(rng.choice(OPENINGS)).format(**slots), *(_phrase(rng, slot, slots) for slot in rest)])


def _phrase(rng: np.random.Generator, slot: str, slots: Record) -> str:
    return str(rng.choice(PHRASES[slot])).format(slots[slot])


def house(number: int) -> dict[str, str]:
    """Slot -> phrase, in the order of the text, of one random style: one or two words, the value, at most one word."""
    rng = np.random.default_rng((10_000, number))
    style = {}
    for slot in rng.permutation(SLOTS):
        before = " ".join(rng.choice(WORDS, rng.integers(1, 3), replace=False))
        colon = ":" if rng.random() < 0.3 else ""
        after = "".join(f" {word}" for word in rng.choice(WORDS, rng.integers(0, 2)))
        style[str(slot)] = f"{before}{colon} {{}}{after}{rng.choice(['', *MARKS])}"
    return style


def say(style: dict[str, str], slots: Record) -> str:
    return " ".join(phrase.format(slots[slot]) for slot, phrase in style.items() if slot in slots)


def corpus(number: int, seed: int, *, share: float = 0.3, plainly: float = 0.3) -> Iterator[dict[str, Any]]:
    """Items (prompt, completion, slots) of pretraining: plain, or in one of the random house styles."""
    rng, styles = np.random.default_rng((seed, 0)), [house(n) for n in range(STYLES)]
    for _ in range(number):
        slots = record(rng, share)
        asked = prompt(rng, slots)
        text = plain(rng, slots) if rng.random() < plainly else say(styles[rng.integers(STYLES)], slots)
        yield {"prompt": asked, "completion": text, "slots": slots}


def labelled(number: int, seed: int, style: Literal["target", "plain"] = "target") -> list[dict[str, Any]]:
    """Items (prompt, completion, slots) in the target style; a smaller number is the beginning of a larger one."""
    rng, items = np.random.default_rng((seed, 1)), []
    for _ in range(number):
        slots = record(rng, 0.5)
        asked = prompt(rng, slots)
        items.append({"prompt": asked, "completion": say(TARGET, slots) if style == "target" else plain(rng, slots),
                      "slots": slots})  # fmt: skip
    return items
