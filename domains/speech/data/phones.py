"""Phones as symbols: the one set that twin, flite, aligned real speech and the acoustic models share.

The symbols are those of flite's American English voices (`flite -psdur`), lower case; `pau` is silence.
"""

from __future__ import annotations

PAUSE = "pau"
VOWELS = ("aa", "ae", "ah", "ao", "aw", "ax", "ay", "eh", "er", "ey", "ih", "iy", "ow", "oy", "uh", "uw")
CONSONANTS = (
    "b", "ch", "d", "dh", "f", "g", "hh", "jh", "k", "l", "m", "n", "ng",
    "p", "r", "s", "sh", "t", "th", "v", "w", "y", "z", "zh",
)  # fmt: skip
PHONES = (PAUSE, *VOWELS, *CONSONANTS)  # an index is a phone's id in every model; padding is masked, it has no id
INDEX = {symbol: i for i, symbol in enumerate(PHONES)}
UNVOICED = frozenset({PAUSE, "ch", "f", "hh", "k", "p", "s", "sh", "t", "th"})


def of_text(text: str, folder: str | None = None) -> list[tuple[str, float]]:
    """(symbol, seconds) of English text, as flite's voice slt would say it.

    DataError           nothing in the text can be said       EnvironmentError_   flite is missing
    """
    from domains.speech.data.flite import FOLDER, speak

    return speak(text, folder=folder or FOLDER).phones
