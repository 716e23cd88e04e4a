"""The network of `fastspeech`: phones to a mel spectrogram, all frames at once. Plain torch, any length.

After FastSpeech 2 (Ren et al. 2021, arXiv 2006.04558) with these changes: pitch and energy are one number per phone, as
in FastPitch (arXiv 2006.06873); attention weighs distance (ALiBi, arXiv 2108.12409, both directions) instead of adding
positions; each frame is told where in its phone it lies; norms come first in a block.

B utterances, T phones, F frames, C channels; `padding` is True at what is not there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CENTRE, SPREAD = -5.0, 2.0  # of a log mel spectrogram: the network's own output is near 0 and 1


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        # Head h looks about 2^(1 + 2 h) items far: near things matter from the first step on.
        self.register_buffer("slope", 2.0 ** -(1 + 2 * torch.arange(heads).float()), persistent=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        at = torch.arange(length, device=x.device)
        distance = (at[:, None] - at).abs()
        bias = (-self.slope[:, None, None] * distance).to(q.dtype).expand(batch, -1, -1, -1)
        bias = bias.masked_fill(padding[:, None, None], torch.finfo(q.dtype).min)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """A convolution over neighbours, then a linear map back."""

    def __init__(self, width: int, inner: int, kernel: int):
        super().__init__()
        self.inner = nn.Conv1d(width, inner, kernel, padding=kernel // 2)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x.masked_fill(padding[..., None], 0.0)
        return self.out(F.gelu(self.inner(x.transpose(1, 2))).transpose(1, 2))


class Block(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, kernel: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), FeedForward(width, inner, kernel)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), padding)
        return x + self.mlp(self.norm2(x), padding)


class Predictor(nn.Module):
    """(B, T, C) -> (B, T): one number per phone."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.first = nn.Conv1d(width, inner, 3, padding=1)
        self.second = nn.Conv1d(inner, inner, 3, padding=1)
        self.norm1, self.norm2 = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.out = nn.Linear(inner, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        for conv, norm in ((self.first, self.norm1), (self.second, self.norm2)):
            x = x.masked_fill(padding[..., None], 0.0)
            x = norm(F.relu(conv(x.transpose(1, 2))).transpose(1, 2))
        return self.out(x).squeeze(-1)


class Regulator(nn.Module):
    """(B, T, C), frames per phone (B, T) -> (B, F, C): every phone as often as it has frames, each told its place."""

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Linear(3, width)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(1)
        frame = torch.arange(max(1, int(ends[:, -1].max())), device=x.device)
        owner = torch.searchsorted(ends, frame.expand(len(x), -1).contiguous(), right=True)
        owner = owner.clamp(max=x.shape[1] - 1)
        last, size = ends.gather(1, owner), counts.gather(1, owner).clamp(min=1)
        share = ((frame + 0.5 - (last - size)) / size).clamp(0, 1)
        place = torch.stack([share, (1 - share), size.float().log1p() / 3], -1).to(x.dtype)
        return x.gather(1, owner[..., None].expand(-1, -1, x.shape[2])) + self.place(place)


class Acoustic(nn.Module):
    def __init__(
        self,
        phones: int,
        speakers: int,
        n_mels: int = 80,
        width: int = 128,
        inner: int = 192,
        heads: int = 4,
        encoder: int = 2,
        decoder: int = 2,
        predictor: int = 64,
    ):
        super().__init__()
        self.phones, self.speakers = nn.Embedding(phones, width), nn.Embedding(speakers, width)
        self.encoder = nn.ModuleList(Block(width, inner, heads, 3) for _ in range(encoder))
        self.encoder_norm = nn.LayerNorm(width)
        self.duration, self.pitch, self.energy = (Predictor(width, predictor) for _ in range(3))
        self.pitch_in, self.energy_in = nn.Linear(1, width), nn.Linear(1, width)
        self.regulator = Regulator(width)
        self.decoder = nn.ModuleList(Block(width, inner, heads, 5) for _ in range(decoder))
        self.decoder_norm = nn.LayerNorm(width)
        self.mel = nn.Linear(width, n_mels)
        nn.init.normal_(self.speakers.weight, std=0.1)
        nn.init.normal_(self.phones.weight, std=0.5)

    def forward(
        self,
        phones: Tensor,
        padding: Tensor,
        speaker: Tensor,
        durations: Tensor | None = None,
        pitch: Tensor | None = None,
        energy: Tensor | None = None,
        voices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Teacher-forced where the last three are given, free-running where they are not.

        speaker   (B,) int64: a row of the base's table, or, from its end on, of `voices` (new, C)
        durations (B, T) int64 frames; pitch (B, T) octaves above 150 Hz; energy (B, T) mean log mel
        returns   hidden (B, F, C), mel (B, F, n_mels), padding (B, F), durations (B, T) int64 as used,
                  log_durations, pitch, energy (B, T) as predicted; log_durations are log(frames + 1)
        """
        x = self.phones(phones)
        for block in self.encoder:
            x = block(x, padding=padding)
        table = self.speakers.weight if voices is None else torch.cat([self.speakers.weight, voices])
        x = self.encoder_norm(x) + table[speaker][:, None]
        said = {
            "log_durations": self.duration(x, padding),
            "pitch": self.pitch(x, padding),
            "energy": CENTRE + SPREAD * self.energy(x, padding),
        }
        if durations is None:
            durations = (said["log_durations"].exp() - 1).round().long().clamp(min=1, max=200)
        counts = durations.masked_fill(padding, 0)
        heard = said["pitch"] if pitch is None else pitch
        loud = said["energy"] if energy is None else energy
        x = x + self.pitch_in(heard[..., None]) + self.energy_in((loud[..., None] - CENTRE) / SPREAD)
        x = self.regulator(x, counts)
        total = counts.sum(1)
        beyond = torch.arange(x.shape[1], device=x.device) >= total[:, None]
        for block in self.decoder:
            x = block(x, padding=beyond)
        x = self.decoder_norm(x)
        mel = CENTRE + SPREAD * self.mel(x)
        return {"hidden": x, "mel": mel, "padding": beyond, "durations": counts, **said}
