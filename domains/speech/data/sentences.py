"""Plain English sentences from a small grammar, for synthetic speech where no text is given. Every phone occurs."""

from __future__ import annotations

import numpy as np

from core.data.seeding import derive

ADJECTIVES = (
    "old young small large bright dark quiet noisy gentle rough smooth narrow broad yellow purple orange beige wooden "
    "broken joyful cheerful thirsty hungry careful curious unusual ordinary royal useful azure weary heavy icy oily"
).split()
NOUNS = (
    "teacher doctor child farmer sailor king queen judge baker poet village river mountain garden kitchen window "
    "bridge castle church ship boat train horse bird fish tiger mouse spider flower tree leaf root stone cloud storm "
    "thunder moon sun morning evening winter summer voice song music letter book picture treasure measure garage "
    "coin toy oil choice boy noise house mouth tongue finger shoulder ear eye nose chair table door roof floor tower "
    "pencil paper engine wheel machine yacht youth university question answer journey vision decision bath path "
    "breath clothes brother mother father feather weather leather earth birth month"
).split()
VERBS = (
    "saw heard found lost carried followed watched painted opened closed pulled pushed chose enjoyed avoided "
    "described measured judged changed reached touched washed finished pleased amazed bothered gathered thanked "
    "believed remembered forgot admired noticed questioned answered"
).split()
PLACES = (
    "near the harbour|under the bridge|behind the church|along the valley|across the meadow|beyond the village|"
    "through the forest|inside the house|above the clouds|around the corner|without a sound|before the evening|"
    "in the garage|at the university|by the fire|on the other shore"
).split("|")
TIMES = (
    "yesterday|this morning|in early autumn|last Thursday|every now and then|long ago|a few years later|"
    "once again|in the meantime|after a short pause|to our surprise|as usual"
).split("|")
NUMBERS = "two three four five six seven eight nine ten eleven twelve thirty forty".split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different sentences of 5 to 17 words; a smaller call gives the beginning of a larger one."""
    found: dict[str, None] = {}
    for i in range(20 * count):
        if len(found) == count:
            break
        found.setdefault(_sentence(np.random.default_rng(derive(seed, "sentence", i))))
    return list(found)


def _sentence(rng: np.random.Generator) -> str:
    def one(words: list[str]) -> str:
        return words[rng.integers(len(words))]

    def thing() -> str:
        adjective = f"{one(ADJECTIVES)} " if rng.random() < 0.6 else ""
        return f"the {adjective}{one(NOUNS)}"

    forms = (
        lambda: f"{thing()} {one(VERBS)} {thing()} {one(PLACES)}",
        lambda: f"{one(TIMES)}, {thing()} {one(VERBS)} {thing()}",
        lambda: f"{thing()} and {thing()} {one(VERBS)} {thing()}, {one(TIMES)}",
        lambda: f"why was {thing()} {one(PLACES)} with {thing()}",
        lambda: f"there were {one(NUMBERS)} things {one(PLACES)}, which {thing()} {one(VERBS)}",
        lambda: f"{thing()} {one(VERBS)} {thing()}, but {thing()} {one(VERBS)} {thing()}",
    )
    text = forms[rng.integers(len(forms))]()
    return text[0].upper() + text[1:] + ("?" if text.startswith("why") else ".")
