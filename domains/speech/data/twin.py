"""Synthetic speech with known phones, durations, pitch and text, made at run time from a seed (world.py says how).

tts       one new speaker, who reads a few sentences; the embedded model was pretrained on the eight base speakers
emotion   utterances of many speakers in four emotions; test speakers are never seen in training
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from core.contracts import Audit, Data, Split
from core.errors import ConfigError
from domains.speech.data.world import EMOTIONS, World


class Twin(Data):
    """Items of the twin's world, as `World.sample` gives them.

    label             tts: no label; emotion: neutral, happy, sad or angry
    world             which world; the embedded acoustic model was pretrained in world 0
    speaker           name of the new speaker (tts)
    seed              which sentences are drawn for train; val and test stay the same
    train, val, test  number of utterances; emotion: of each speaker in each emotion, for 6, 3 and 6 speakers
    """

    kind = "twin"

    def __init__(
        self,
        label: Literal["tts", "emotion"] = "tts",
        *,
        world: int = 0,
        speaker: str = "new",
        seed: int = 0,
        train: int = 10,
        val: int = 4,
        test: int = 24,
    ):
        small = [(name, n) for name, n in (("train", train), ("val", val), ("test", test)) if n < 1]
        if small:
            raise ConfigError(where=f"data.{small[0][0]}", got=small[0][1], allowed="at least 1 utterance")
        self.label, self.world, self.speaker, self.seed = label, world, speaker, seed
        self.sizes = {"train": train, "val": val, "test": test}
        self._items: dict[str, list[dict[str, Any]]] = {}

    def setup(self) -> None:
        world = World(self.world)
        for split, count in self.sizes.items():
            seed = self.seed if split == "train" else 0
            if self.label == "tts":
                self._items[split] = world.sample(split, world.voice(self.speaker), count, seed)
            else:
                people = [world.voice(f"{split}{i}") for i in range({"train": 6, "val": 3, "test": 6}[split])]
                drawn = [world.sample(split, voice, count, seed, name) for voice in people for name in EMOTIONS]
                self._items[split] = [{**item, "group": item["speaker"]} for part in drawn for item in part]

    def items(self, split: Split) -> Sequence[dict[str, Any]]:
        return self._items[split]

    def length(self, item: dict[str, Any]) -> int:
        """Duration in 10 ms."""
        return round(100 * item["seconds"])

    def audit(self) -> Audit:
        from domains.speech.data.audit import audit

        return audit(self._items, together="utterance" if self.label == "tts" else "speaker", listen=12)
