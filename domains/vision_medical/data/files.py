"""Folders of files: what lies in them, which split and class a path names, which mask belongs to which image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from core.data.splits import GIVEN
from core.data.text import Faults
from core.errors import ConfigError, DataError, did_you_mean
from core.paths import locate
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.reading import PICTURES, VOLUMES, Reader, reader, suffix

# Endings that tell a mask from its image and are left out when names are compared.
MARKS = re.compile(r"([_-]?(0000|mask|masks|seg|segmentation|label|labels|gt|image|img|t1|t2|ct|mr))$", re.IGNORECASE)


def folder(path: str, key: str) -> Path:
    """The folder that a config means. DataError: there is none, with the nearest name beside it."""
    found = locate(path)
    if found.is_dir():
        return found
    got = "a file" if found.is_file() else "no such folder"
    parent = found.parent
    near = did_you_mean(found.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""
    raise DataError(str(path), got, f"a folder ({key})", near)


def images(root: Path) -> list[Path]:
    """All images below `root`, sorted; hidden files are left out. DataError: there is none."""
    found = sorted(
        path
        for path in root.rglob("*")
        if suffix(path.name) in (*PICTURES, *VOLUMES) and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise DataError(str(root), "no images", ", ".join((*PICTURES, *VOLUMES)))
    return found


def given_split(relative: Path) -> tuple[str, Path]:
    """(split that the first folder names or '', the path below it)."""
    first = relative.parts[0].lower() if len(relative.parts) > 1 else ""
    return (GIVEN[first], Path(*relative.parts[1:])) if first in GIVEN else ("", relative)


def stem(relative: Path) -> str:
    """The path without its suffix, .nii.gz counted as one."""
    text = relative.as_posix()
    return text[: len(text) - len(suffix(text))]


def core_name(relative: Path) -> str:
    """What image and mask have in common: `train/p1_img.png` and `train/p1_mask.png` are both `train/p1`."""
    text = stem(relative)
    while (shorter := MARKS.sub("", text)) != text and shorter.rpartition("/")[2]:
        text = shorter
    return text


class Patients:
    """Patient from a file's path by a pattern with one group, `(P\\d+)_`; without one, every image is its own."""

    def __init__(self, pattern: str | None):
        try:
            self.pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ConfigError("data.patient", pattern, f"a regular expression ({error})") from None
        if self.pattern is not None and self.pattern.groups != 1:
            raise ConfigError("data.patient", pattern, "one group in brackets, such as (P\\d+)_")

    def __call__(self, faults: Faults, relative: Path) -> str:
        name = stem(relative)
        if self.pattern is None:
            return name
        match = self.pattern.search(name)
        if match is None:
            faults.problems += DataError(relative.as_posix(), "no patient in its name", self.pattern.pattern).problems
            return name
        return match[1]


def read_with(
    image: Path, mask: Path | None, prepare: Prepare, spacing: Any = None, faults: Faults | None = None
) -> Reader:
    """The reader of an image and its mask; a picture with a volume as mask (or the other way round) is a fault."""
    kind = reader(image.name)
    if faults is not None and mask is not None and reader(mask.name) is not kind:
        faults.problems += DataError(str(mask), f"a mask for {image.name}", "a mask in the image's format").problems
    return kind(str(image), None if mask is None else str(mask), prepare, spacing=tuple(spacing) if spacing else None)
