"""SpeechT5 for synthesis through transformers: characters and a speaker vector to a mel spectrogram, frame by frame.
Paper     Ao et al. 2022, arXiv 2110.07205
Text      (batch, characters) int64      Hidden  (batch, frames / 2, channels): a decoder step is two frames
Speaker   512 numbers. The base knows no speaker by name; a new one has a vector in the adapter's head, which starts at
          `speaker_vector` (an x-vector, as SpeechT5 was trained with) or at equal numbers: nobody in particular.
Chance    the decoder's prenet drops half of its inputs in evaluation, too (as published): outside training it draws
          from a seed of its own, so that a sentence always sounds the same. Layer drop and all other dropout are off.
Differs   no guided-attention loss: it teaches a new alignment, and an adapted one has learned its.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core import weights
from core.adapters import acting_head
from core.contracts import Backbone, Output
from core.errors import ConfigError, DataError, Problem
from domains.speech.features import SPEECHT5

STILL = (
    "hidden_dropout activation_dropout attention_dropout encoder_layerdrop decoder_layerdrop positional_dropout "
    "feat_proj_dropout final_dropout speech_decoder_postnet_dropout"
).split()
TINY = {
    "hidden_size": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "speech_decoder_prenet_units": 16,
    "speech_decoder_postnet_units": 16,
    "speech_decoder_postnet_layers": 2,
    "speaker_embedding_dim": 16,
    "max_text_positions": 200,
    "max_speech_positions": 400,
}
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'.,?!;:-\""
ENCODER, DECODER = "speecht5.encoder.wrapped_encoder.layers.*", "speecht5.decoder.wrapped_decoder.layers.*"


class SpeechT5(Backbone):
    """source: folder or hub repository with config.json, weights and the tokenizer's files; without one, a tiny network
    with random weights that reads lower-case letters.

    speaker_vector   .safetensors file with one tensor of 512 numbers: where a new speaker starts"""

    reads_head = True
    speakers: tuple[str, ...] = ()
    recipe = SPEECHT5
    roles = {
        "embed": "speecht5.encoder.prenet.embed_tokens",
        "block": [ENCODER, DECODER],
        "attn": [f"{ENCODER}.attention", f"{DECODER}.self_attn"],
        "attn.q": [f"{ENCODER}.attention.q_proj", f"{DECODER}.self_attn.q_proj"],
        "attn.k": [f"{ENCODER}.attention.k_proj", f"{DECODER}.self_attn.k_proj"],
        "attn.v": [f"{ENCODER}.attention.v_proj", f"{DECODER}.self_attn.v_proj"],
        "attn.out": [f"{ENCODER}.attention.out_proj", f"{DECODER}.self_attn.out_proj"],
        "xattn.q": f"{DECODER}.encoder_attn.q_proj",
        "xattn.k": f"{DECODER}.encoder_attn.k_proj",
        "xattn.v": f"{DECODER}.encoder_attn.v_proj",
        "xattn.out": f"{DECODER}.encoder_attn.out_proj",
        "mlp": [f"{ENCODER}.feed_forward", f"{DECODER}.feed_forward"],
        "mlp.in": [f"{ENCODER}.feed_forward.intermediate_dense", f"{DECODER}.feed_forward.intermediate_dense"],
        "mlp.out": [f"{ENCODER}.feed_forward.output_dense", f"{DECODER}.feed_forward.output_dense"],
        "conv": "speech_decoder_postnet.layers.*.conv",
        "norm": [
            f"{ENCODER}.layer_norm",
            f"{ENCODER}.final_layer_norm",
            f"{DECODER}.self_attn_layer_norm",
            f"{DECODER}.encoder_attn_layer_norm",
            f"{DECODER}.final_layer_norm",
        ],
        "head": ["speech_decoder_postnet.feat_out", "speech_decoder_postnet.prob_out"],
    }

    def __init__(
        self, source: str | None = None, speaker_vector: str | None = None, pretrained: bool = True, seed: int = 0
    ):
        super().__init__()
        from transformers import SpeechT5Config, SpeechT5ForTextToSpeech

        if source is None and pretrained:
            fix = "set pretrained=false for a tiny random network"
            raise ConfigError("backbone.source", "null", "a folder, or owner/name of a hub repository", fix)
        folder = None if source is None else weights.folder(source)
        settings = TINY if folder is None else weights.configuration(folder / "config.json")
        tokenizer = Characters() if folder is None else _tokenizer(folder)
        if folder is None:
            settings = {**settings, "vocab_size": len(CHARACTERS) + 3, "pad_token_id": 1, "eos_token_id": 2}
        config = SpeechT5Config(**{**settings, **dict.fromkeys(STILL, 0.0)})
        if pretrained:
            self.net = SpeechT5ForTextToSpeech.from_pretrained(folder, config=config).eval()
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.net = SpeechT5ForTextToSpeech(config).eval()
        if config.num_mel_bins != self.recipe.n_mels:
            raise ConfigError("backbone.source", f"{config.num_mel_bins} mel bins", f"{self.recipe.n_mels}")
        self.width, self.heads = config.hidden_size, config.encoder_attention_heads
        self.tokenizer = TextReader(tokenizer, config.max_text_positions)
        self.start = _vector(speaker_vector, config.speaker_embedding_dim)

    def example(self):
        batch = self.tokenizer.inputs([{"id": "a", "text": "hello you"}, {"id": "b", "text": "no"}])
        mel = torch.linspace(-6, 0, 2 * 7 * self.recipe.n_mels).view(2, 7, -1)  # odd on purpose
        mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        return ({**batch, "mel": mel, "mel_mask": mask, "speaker": torch.tensor([0, 0])},), {}

    def forward(self, batch) -> Output:
        """Teacher-forced. `extras`: mel and, before the postnet, mel_before (B, F, n_mels); stop (B, F) logits."""
        factor, mel, mask = self.net.config.reduction_factor, batch["mel"], batch["mel_mask"]
        length = mel.shape[1]
        if short := -length % factor:  # the network gives whole steps only
            mel, mask = F.pad(mel, (0, 0, 0, short)), F.pad(mask, (0, short))
        seen = mel.masked_fill(~mask[..., None], 0.0)[:, factor - 1 :: factor]
        inputs = F.pad(seen, (0, 0, 1, 0))[:, :-1]
        with _seeded(self.training):
            hidden = self.net.speecht5(
                input_values=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_values=inputs,
                decoder_attention_mask=mask[:, ::factor].long(),
                speaker_embeddings=self._voices(batch["speaker"]),
                return_dict=True,
            ).last_hidden_state
        before, after, stop = self.net.speech_decoder_postnet(hidden)
        said = {"mel": after[:, :length], "mel_before": before[:, :length], "stop": stop[:, :length]}
        return Output(hidden, mask[:, ::factor], extras=said)

    @torch.no_grad()
    def synthesise(self, batch: dict) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(mel (B, F, n_mels), frames of each (B,), {"stopped": (B,) bool, False where the length cap ended it})."""
        ratio = 20.0  # frames per character at most
        with _seeded(False):
            mel, lengths = self.net.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                speaker_embeddings=self._voices(batch["speaker"]),
                maxlenratio=ratio,
                return_output_lengths=True,
            )
        lengths = torch.tensor(lengths, device=mel.device)
        factor = self.net.config.reduction_factor
        return mel, lengths, {"stopped": lengths < int(batch["input_ids"].shape[1] * ratio / factor) * factor}

    def voice_start(self) -> Tensor:
        return self.start

    def _voices(self, speaker: Tensor) -> Tensor:
        vectors = getattr(acting_head(self), "vectors", None)
        table = self.start[None].to(speaker.device) if vectors is None else vectors
        return table[speaker]


@contextmanager
def _seeded(training: bool):
    """Outside training the prenet's dropout draws from a seed of its own."""
    if training:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Characters:
    """Lower-case letters and signs, for a network without a tokenizer: `</s>` behind, pad 1."""

    pad_token_id = 1

    def encode(self, text: str) -> list[int]:
        known = [CHARACTERS.index(c) + 3 for c in text.lower() if c in CHARACTERS]
        return [*known, 2] if known else []


class TextReader:
    """Texts to ids, right-padded, with a mask."""

    recipe, speakers, reads = SPEECHT5, (), "text"

    def __init__(self, tokenizer: Any, limit: int):
        self.tokenizer, self.limit = tokenizer, limit

    def inputs(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T) int64. DataError lists texts that are empty or too long."""
        rows, problems = [], []
        for item in items:
            ids = self.tokenizer.encode(item.get("text") or "")
            if not item.get("text") or not ids:
                problems.append(Problem(f"{item['id']}: text", repr(item.get("text")), "words that can be read"))
            elif len(ids) > self.limit:
                problems.append(Problem(f"{item['id']}: text", f"{len(ids)} tokens", f"at most {self.limit}"))
            rows.append(torch.tensor(ids, dtype=torch.int64))
        if problems:
            raise DataError(problems=problems)
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def _tokenizer(folder: Path):
    from core.errors import EnvironmentError_

    try:
        from transformers import SpeechT5Tokenizer

        return SpeechT5Tokenizer.from_pretrained(folder)
    except ImportError as error:
        fix = "pip install sentencepiece"
        raise EnvironmentError_("backbone.source", str(error).splitlines()[0], "sentencepiece", fix) from None
    except (OSError, TypeError, ValueError) as error:
        raise DataError(str(folder), f"no tokenizer: {error}"[:160], "spm_char.model beside the weights") from None


def _vector(path: str | None, size: int) -> Tensor:
    if path is None:
        return torch.full((size,), size**-0.5)  # not 0: the network divides by its length
    found = list(weights.state(Path(path)).values())
    if len(found) != 1 or found[0].numel() != size:
        got = ", ".join(str(tuple(t.shape)) for t in found)
        raise ConfigError("backbone.speaker_vector", f"{path}: {got}", f"one tensor of {size} numbers")
    return found[0].flatten().float()
