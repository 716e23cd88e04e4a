"""How far a prediction is from what was spoken: one number per utterance and term, so that long ones do not outvote
short ones.

mel      nat, mean over frames and bins of |log mel - its truth|; of a network with a postnet, before it as well
durations  mean |log(frames + 1)|        pitch  mean |octaves|        energy  mean |log mel|        stop  cross entropy
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts import Output

WEIGHTS = {"mel": 1.0, "mel_before": 1.0, "log_durations": 0.5, "pitch": 1.0, "energy": 0.1, "stop": 0.5}


def terms(output: Output, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """name -> (B,) for every quantity that the network predicts."""
    said, frames, phones = output.extras, batch["mel_mask"], batch.get("phone_mask")
    found = {
        name: _mean((said[name] - batch["mel"]).abs().mean(-1), frames)
        for name in ("mel", "mel_before")
        if name in said
    }
    if "log_durations" in said:
        found["log_durations"] = _mean((said["log_durations"] - batch["durations"].float().log1p()).abs(), phones)
    for name in ("pitch", "energy"):
        if name in said:
            found[name] = _mean((said[name] - batch[name]).abs(), phones)
    if "stop" in said:
        found["stop"] = _mean(_stop(said["stop"], frames), frames)
    return found


def weighted(found: dict[str, Tensor]) -> Tensor:
    """(B,) sum of the terms."""
    return sum(WEIGHTS[name] * value for name, value in found.items())


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def _stop(logits: Tensor, frames: Tensor) -> Tensor:
    """(B, F): the last frame of an utterance is where to stop."""
    at = torch.arange(frames.shape[1], device=frames.device)
    last = at == frames.sum(1, keepdim=True) - 1
    return F.binary_cross_entropy_with_logits(logits, last.to(logits.dtype), reduction="none")
