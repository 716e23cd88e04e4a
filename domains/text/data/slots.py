"""Whether a text says a slot's value. A value counts as a whole word, whatever its case; where people say it in other
words (E2E's ratings, prices, families), SAID has the pattern. Negations are not understood elsewhere.
"""

from __future__ import annotations

import re
from functools import lru_cache

FRIENDLY = r"(?:family|families|kids?|child(?:ren)?)(?:'s)?"
NO = r"(?:\bnot\b|n't\b|\bno\b|\bnon\b|\bnever\b|\bisn|\bun)"
UNFRIENDLY = rf"{NO}[^.,;]{{0,40}}?{FRIENDLY}|{FRIENDLY}[^.,;]{{0,25}}?(?:{NO}|unfriendly)|\badults?\b|\badult[- ]only"
SAID = {
    ("familyFriendly", "yes"): rf"^(?!.*(?:{UNFRIENDLY})).*{FRIENDLY}",
    ("familyFriendly", "no"): UNFRIENDLY,
    ("food", "English"): r"\benglish|\bbritish",
    ("area", "city centre"): r"(?:city|town)[ -]?cent(?:re|er)|cent(?:re|er) of (?:the )?(?:city|town)|\bcity\b",
    ("area", "riverside"): r"river",
    ("priceRange", "less than £20"): r"(?:less|lower|under|below|cheaper|up to|beneath)[^.]{0,15}?£? ?20"
    r"|\b20 ?(?:pounds )?or less|\bcheap|\blow[- ](?:price|cost)",
    ("priceRange", "more than £30"): r"(?:more|over|above|higher|upwards|exceed\w*|beyond)[^.]{0,20}?£? ?30"
    r"|£? ?30 ?(?:\+|and up|or more)|\bhigh|\bexpensive",
    ("priceRange", "£20-25"): r"£? ?20 ?(?:-|\u2013|to|and|through) ?£? ?25|\bmoderate|\baverage|\bmid",
    ("priceRange", "cheap"): r"\bcheap|\blow(?:er)?[- ](?:price|cost)|inexpensive|affordable|low price",
    ("priceRange", "moderate"): r"\bmoderate|\bmid|\baverage|\breasonabl",
    ("priceRange", "high"): r"\bhigh|\bexpensive|\bpric(?:e)?y\b|\bupscale",
    ("customer rating", "low"): r"\blow|\bpoor|\bbad\b|\b1 (?:out|star)|one star",
    ("customer rating", "average"): r"\baverage|\b3 (?:out|star)|three star|\bmoderate|\bdecent",
    ("customer rating", "high"): r"\bhigh|\b5 (?:out|star)|five star|\bexcellent|\bgreat|\bwell",
    ("customer rating", "1 out of 5"): r"\b(?:1|one)\b|\blow|\bpoor",
    ("customer rating", "3 out of 5"): r"\b(?:3|three)\b|\baverage",
    ("customer rating", "5 out of 5"): r"\b(?:5|five)\b|\bhigh|\bexcellent",
}


SHARED = ("priceRange", "customer rating")  # their words are the other's, too: "a high rating", "a high price"


def said(text: str, slot: str, value: str) -> bool:
    return pattern(slot, value).search(text) is not None


@lru_cache(maxsize=4096)
def pattern(slot: str, value: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, value.split()))
    return re.compile(SAID.get((slot, value)) or rf"(?<!\w){words}(?!\w)", re.IGNORECASE | re.DOTALL)
