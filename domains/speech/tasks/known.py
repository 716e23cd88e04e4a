"""Sentences of the speakers whom a base knows: what an adapted model may have forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.contracts import Backbone, Data


def sentences(backbone: Backbone, data: Data, count: int) -> list[dict[str, Any]]:
    """Held-out items of the base's own speakers, `count` of each; [] where it knows nobody or there are none."""
    if not count or not backbone.speakers:
        return []
    if all(name.startswith("base") for name in backbone.speakers):
        from domains.speech.data.world import World

        world = World(0)  # of the twin's pretraining
        voices = [voice for voice in world.base() if voice.name in backbone.speakers]
        return [item for voice in voices for item in world.sample("held", voice, count)]
    from domains.speech.data import flite
    from domains.speech.data.voices import spoken as said
    from domains.speech.pretraining.corpus import LEVEL

    spoken = [voice for voice in flite.VOICES if voice in backbone.speakers]
    if not spoken:
        return []
    items = said(spoken, count, seed=2, sample_rate=backbone.recipe.sample_rate)
    return [item | {"read": replace(item["read"], loudness=LEVEL)} for item in items]
