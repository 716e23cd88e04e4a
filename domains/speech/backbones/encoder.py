"""Wav2Vec2, HuBERT and WavLM through transformers: samples to frames of 20 ms.
Papers    Baevski et al. 2020, arXiv 2006.11477; Hsu et al. 2021, arXiv 2106.07447; Chen et al. 2022, arXiv 2110.13900
Samples   (batch, samples) fp32 at 16 kHz      Hidden  (batch, frames, channels); `extras["layers"]`: every layer's
Chance    layer drop, SpecAugment and dropout are off: a frozen network answers alike twice.
Padding   networks with a group norm over time (Wav2Vec2-base and its like) cannot be told what is padding: their
          utterances run one by one. The others run together, with a mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core import profiles, weights
from core.contracts import Backbone, Output
from core.errors import ConfigError
from domains.speech.tasks.utterances import samples_of

PROFILES = Path(__file__).resolve().parent / "profiles"
FAMILIES = ("wav2vec2", "hubert", "wavlm")
STILL = (
    "layerdrop hidden_dropout attention_dropout activation_dropout feat_proj_dropout final_dropout "
    "mask_time_prob mask_feature_prob"
).split()
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (8, 5, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


class SpeechEncoder(Backbone):
    """source: folder or hub repository; without one, a tiny random network of `family`.

    norm   of the tiny network's convolutions: group as in the base models, layer as in the large ones"""

    def __init__(
        self,
        source: str | None = None,
        family: Literal["wav2vec2", "hubert", "wavlm"] = "wav2vec2",
        norm: Literal["group", "layer"] = "layer",
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        if source is None and pretrained:
            fix = "set pretrained=false for a tiny random network"
            raise ConfigError("backbone.source", "null", "a folder, or owner/name of a hub repository", fix)
        still = {**dict.fromkeys(STILL, 0.0), "apply_spec_augment": False}
        if source is None:
            config = AutoConfig.for_model(family, **TINY, feat_extract_norm=norm, **still)
            read = {}
        else:
            folder = weights.folder(source)
            kind = weights.configuration(folder / "config.json").get("model_type")
            if kind not in FAMILIES:
                raise ConfigError("backbone.source", f"{source} is of type {kind}", FAMILIES)
            config = AutoConfig.from_pretrained(folder)
            for name, value in still.items():
                setattr(config, name, value)
            file = folder / "preprocessor_config.json"
            read = weights.configuration(file) if file.is_file() else {}
        if pretrained:
            self.net = AutoModel.from_pretrained(folder, config=config).eval()
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.net = AutoModel.from_config(config).eval()
        found = profiles.find(self.net, PROFILES)
        self.roles, self.heads, self.width = found.roles, found.heads, config.hidden_size
        self.token_port = found.port
        self.alone = config.feat_extract_norm == "group"
        shortest = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            shortest = (shortest - 1) * stride + kernel
        self.tokenizer = SampleReader(read.get("sampling_rate", 16000), read.get("do_normalize", True), shortest)

    def example(self):
        samples = torch.linspace(0, 60, 2 * 2000).sin().view(2, 2000)
        mask = torch.ones(2, 2000, dtype=torch.bool)
        mask[1, 1500:] = False
        return ({"samples": samples * mask, "sample_mask": mask},), {}

    def forward(self, batch) -> Output:
        samples, mask = batch["samples"], batch["sample_mask"]
        if not self.alone:
            return self._together(samples, mask)
        rows = [self._together(s[m][None], None) for s, m in zip(samples, mask, strict=True)]
        hidden = pad_sequence([row.hidden[0] for row in rows], batch_first=True)
        states = zip(*(row.extras["layers"] for row in rows), strict=True)
        layers = [pad_sequence([state[0] for state in parts], batch_first=True) for parts in states]
        lengths = torch.tensor([row.hidden.shape[1] for row in rows], device=hidden.device)
        there = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        return Output(hidden, there, extras={"layers": layers})

    def _together(self, samples: Tensor, mask: Tensor | None) -> Output:
        out = self.net(samples, attention_mask=None if mask is None else mask.long(), output_hidden_states=True)
        hidden = out.last_hidden_state
        if mask is None:
            there = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        else:
            there = self.net._get_feature_vector_attention_mask(hidden.shape[1], mask.long()).bool()
        states = [s if s.ndim == 3 else s[0] for s in out.hidden_states]
        return Output(hidden, there, extras={"layers": states})


class SampleReader:
    """Recordings to one padded tensor.

    normalise   every utterance to mean 0 and variance 1, as the network was trained      shortest   samples of a frame
    """

    reads = "samples"

    def __init__(self, rate: int, normalise: bool, shortest: int):
        self.rate, self.normalise, self.shortest = rate, normalise, shortest

    def inputs(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """samples (B, S) fp32, sample_mask (B, S) bool. ConfigError: another sample rate."""
        rows = []
        for item in items:
            x = samples_of(item, self.rate)
            if self.normalise:
                x = (x - x.mean()) / (x.var(unbiased=False) + 1e-7).sqrt()
            rows.append(F.pad(x, (0, max(0, self.shortest - len(x)))))
        lengths = torch.tensor([len(row) for row in rows])
        samples = pad_sequence(rows, batch_first=True)
        return {"samples": samples, "sample_mask": torch.arange(samples.shape[1]) < lengths[:, None]}
