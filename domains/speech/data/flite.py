"""Speech that the program flite speaks at run time, with the phones and their durations. Synthetic: never report it as
the quality of real speech.

Every sentence is spoken once per voice and kept, by a hash of both, as .flac and .json in a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.bench.result import write_whole
from core.errors import DataError, EnvironmentError_
from domains.speech.data import audio
from domains.speech.data.phones import INDEX, PAUSE

VOICES = ("slt", "rms", "awb", "kal16")  # a woman, three men; kal16 is joined from recorded diphones
FOLDER = "outputs/flite"
# Allophones that only some voices write, as the phones that all share.
SAME = {"hv": "hh", "dx": "d", "nx": "n", "axr": "er", "el": "l", "em": "m", "en": "n", "brth": PAUSE, "sil": PAUSE}


class Spoken(NamedTuple):
    """A sound file, its length and what it says: phones of (symbol, seconds) that fill it without a gap."""

    path: Path
    sample_rate: int
    frames: int
    phones: list[tuple[str, float]]


def program() -> str:
    """Path of flite. EnvironmentError_ where it is not installed."""
    found = shutil.which("flite")
    if found is None:
        raise EnvironmentError_("flite", "no such program", "flite 2.x on the PATH", "apt-get install flite")
    return found


def plain(text: str) -> str:
    """The text as flite can read it: accents and curly quotes as plain ASCII where there is such a sign."""
    for curly, straight in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2013", "-")):
        text = text.replace(curly, straight)
    spread = unicodedata.normalize("NFKD", text)
    return " ".join("".join(c for c in spread if not unicodedata.combining(c)).split())


def unreadable(text: str) -> list[str]:
    """Letters that flite passes over in silence: of any script but Latin."""
    return sorted({c for c in plain(text) if c.isalpha() and not c.isascii()})


def speak(text: str, voice: str = "slt", folder: str | Path = FOLDER) -> Spoken:
    """What `voice` says, from the folder where it was said before.

    DataError           nothing in the text can be said (another script, only signs)
    EnvironmentError_   flite is missing or fails
    """
    folder, text = Path(folder), plain(text)
    name = hashlib.sha256(f"flite 2\0{voice}\0{text}".encode()).hexdigest()[:20]
    sound, notes = folder / f"{name}.flac", folder / f"{name}.json"
    if not (notes.is_file() and sound.is_file()):
        _say(text, voice, sound, notes)
    known = json.loads(notes.read_text(encoding="utf-8"))
    return Spoken(sound, known["sample_rate"], known["frames"], [(s, float(d)) for s, d in known["phones"]])


def _say(text: str, voice: str, sound: Path, notes: Path) -> None:
    with tempfile.TemporaryDirectory() as room:
        wave = Path(room) / "said.wav"
        ends = _run(text, voice, wave)
        length, fault = audio.header(wave)
        if length is None:
            raise EnvironmentError_("flite", f"its sound for {text[:60]!r}: {fault}", "a sound file")
        phones = durations(ends, length.seconds)
        if all(symbol == PAUSE for symbol, _ in phones):
            raise DataError("text", repr(text[:60]), "words in English spelling")
        samples, rate = audio.Audio(str(wave))()
        sound.parent.mkdir(parents=True, exist_ok=True)
        half = sound.with_suffix(f".{os.getpid()}.flac")
        audio.write(half, samples, rate)
        os.replace(half, sound)
    known = {"text": text, "voice": voice, "sample_rate": rate, "frames": length.frames, "phones": phones}
    write_whole(notes, json.dumps(known))


def _run(text: str, voice: str, wave: Path) -> list[tuple[str, float]]:
    """(symbol, end in seconds) of every phone; the sound goes to `wave`."""
    asked = [program(), "-voice", voice, "-psdur", "-t", text, "-o", str(wave)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    marks = [mark.rpartition(":") for mark in done.stdout.split()]
    if done.returncode or not marks:
        said = (done.stderr or done.stdout).strip()[:120] or "nothing"
        raise EnvironmentError_("flite", f"exit {done.returncode}: {said}", "phones and a sound file")
    return [(known(symbol, text), float(end)) for symbol, _, end in marks]


def known(symbol: str, text: str) -> str:
    symbol = SAME.get(symbol, symbol)
    if symbol not in INDEX:
        raise DataError(f"flite's phones of {text[:60]!r}", symbol, "a phone of domains.speech.data.phones")
    return symbol


def durations(ends: Sequence[tuple[str, float]], total: float) -> list[tuple[str, float]]:
    """(symbol, seconds) that sum up to `total` seconds: the last pause of flite's list is longer than its sound."""
    phones, last = [], 0.0
    for i, (symbol, end) in enumerate(ends):
        end = total if i == len(ends) - 1 else min(end, total)
        if end > last:
            phones.append((symbol, end - last))
            last = end
    return phones
