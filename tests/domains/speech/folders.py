"""Small folders of speech, as users have them: half a second of the twin per file."""

from pathlib import Path

import numpy as np
import soundfile

from domains.speech.data.synthesiser import Voice, speak

TEXTS = ("a first line", "another one", "the third", "and a fourth", "number five", "the last")


def sound(path: Path, seed: int = 0, seconds: float = 0.5, rate: int = 16_000, pitch: float = 120.0) -> Path:
    """A vowel between pauses; other seeds are other noise, so that no two files are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    phones = [("pau", 0.05, 0), ("aa", seconds - 0.1, pitch + seed), ("pau", 0.05, 0)]
    soundfile.write(path, speak(phones, Voice("v"), seed=seed, sample_rate=rate), rate)
    return path


def ljspeech(root: Path, rows: tuple[str, ...] | None = None) -> Path:
    """A folder in LJ Speech's layout: u0 ... u5, classic metadata.csv."""
    for number in range(len(TEXTS)):
        sound(root / "wavs" / f"u{number}.wav", number)
    rows = rows or tuple(f"u{number}|{text}|{text}" for number, text in enumerate(TEXTS))
    (root / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def table(root: Path, speakers: str = "aabbccdd", splits: str = "", header: str = "path,speaker,label,split") -> Path:
    """t.csv of one file per letter of `speakers`, labels x and y in turn; `splits` of the letters r, v and t."""
    named = {"r": "train", "v": "val", "t": "test", "": ""}
    rows = [header]
    for number, speaker in enumerate(speakers):
        sound(root / f"s{number}.wav", number)
        rows.append(f"s{number}.wav,{speaker},{'xy'[number % 2]},{named[splits[number : number + 1]]}")
    (root / "t.csv").write_text("\n".join(rows) + "\n")
    return root / "t.csv"


def tone(seconds: float, rate: int, hertz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)
