"""Splits by patient. A patient, and what is the same image to the pixel, stays on one side; leaks can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.data.splits import Parts
from core.data.splits import Splitting as Base


@dataclass(frozen=True)
class Splitting(Base):
    """kind  given (a column, folders train, val, test) or random; others as core.data.splits says
    drop_leaks  leave out of train (and val) images that are also held out, and images of held-out patients
    """

    TOGETHER: ClassVar[tuple[str, ...]] = ("group", "digest")
    drop_leaks: bool = False

    def finished(self, parts: Parts) -> Parts:
        if not self.drop_leaks:
            return parts
        for name, held in (("train", ("val", "test")), ("val", ("test",))):
            for key in ("digest", "group"):
                taken = {row[key] for other in held for row in parts[other]}
                parts[name] = [row for row in parts[name] if row[key] not in taken]
        return parts
