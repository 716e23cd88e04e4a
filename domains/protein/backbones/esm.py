"""ESM-2, ESM-1b and ESM-1v through fair-esm.
Papers      Lin et al. 2023, Science 379, 1123; Rives et al. 2021, PNAS 118, e2016239118; Meier et al. 2021, NeurIPS 34
Tokens      (batch, tokens) int64, <cls> 0 and <eos> 2 included, pad 1.     Hidden  (batch, tokens, channels)
Inside      fair-esm runs (tokens, batch, channels): `batch_axis` says where.
Attention   ESM-1b and ESM-1v read the projections in one functional call: adapters there ride on the weight itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from core.contracts import Backbone, Output, TokenPort
from core.errors import ConfigError, DataError, EnvironmentError_, did_you_mean
from domains.protein.backbones import tokens

# Name in the local hub cache -> layers, width, heads.
SIZES = {
    "esm2_t6_8M_UR50D": (6, 320, 20),
    "esm2_t12_35M_UR50D": (12, 480, 20),
    "esm2_t30_150M_UR50D": (30, 640, 20),
    "esm2_t33_650M_UR50D": (33, 1280, 20),
    "esm2_t36_3B_UR50D": (36, 2560, 40),
    "esm2_t48_15B_UR50D": (48, 5120, 40),
    "esm1b_t33_650M_UR50S": (33, 1280, 20),
    "esm1v_t33_650M_UR90S_1": (33, 1280, 20),
    "esm1v_t33_650M_UR90S_2": (33, 1280, 20),
    "esm1v_t33_650M_UR90S_3": (33, 1280, 20),
    "esm1v_t33_650M_UR90S_4": (33, 1280, 20),
    "esm1v_t33_650M_UR90S_5": (33, 1280, 20),
}
URL = "https://dl.fbaipublicfiles.com/fair-esm"
# Embedding and language-model head see (batch, tokens, channels); everything between them (tokens, batch, channels).
INSIDE = ("block", "attn", "attn.q", "attn.k", "attn.v", "attn.out", "mlp", "mlp.in", "mlp.out", "norm", "norm.final")


class FairESM(Backbone):
    """What both generations share: reading weights, one forward, contacts."""

    roles = {
        "embed": "embed_tokens",
        "block": "layers.*",
        "attn": "layers.*.self_attn",
        "attn.q": "layers.*.self_attn.q_proj",
        "attn.k": "layers.*.self_attn.k_proj",
        "attn.v": "layers.*.self_attn.v_proj",
        "attn.out": "layers.*.self_attn.out_proj",
        "mlp": "layers.*.fc2",
        "mlp.in": "layers.*.fc1",
        "mlp.out": "layers.*.fc2",
        "norm": ["layers.*.self_attn_layer_norm", "layers.*.final_layer_norm"],
        "norm.final": "emb_layer_norm_after",
        "head": "lm_head.dense",
    }
    batch_axis = dict.fromkeys(INSIDE, 1)

    def __init__(self, net, limit: int | None, contacts_trained: bool):
        super().__init__()
        self.net, self.width = net, net.embed_tokens.embedding_dim
        self.heads = net.layers[0].attention_heads
        self.contacts_trained = contacts_trained
        self.tokenizer = tokens.esm(limit)
        self.token_port = TokenPort(
            model=None,
            blocks="layers.*",
            axis=0,
            bmask="self_attn_padding_mask",
            bkind="pad2d",
            wrap="",
            tokens_out=("representations",),
            dim=self.width,
        )

    def example(self):
        return (self.tokenizer(["MKVLAG", "MKW"]),), {}

    def forward(self, batch) -> Output:
        last = len(self.net.layers)
        out = self.net(batch["tokens"], repr_layers=[last])
        return Output(out["representations"][last], batch["residues"], out["logits"])

    def representations(self, batch, layers: list[int]) -> dict[int, Tensor]:
        """Layer -> (batch, tokens, channels); layer 0 is the embedding, the last one is layer-normed."""
        return self.net(batch["tokens"], repr_layers=layers)["representations"]

    def contacts(self, batch) -> Tensor:
        """(batch, residues, residues) contact probability; ConfigError without trained regression weights."""
        if not self.contacts_trained:
            raise ConfigError(
                "backbone.source",
                "no contact regression with these weights",
                "ESM-1b or ESM-2 with its `-contact-regression.pt` beside it",
            )
        return self.net(batch["tokens"], return_contacts=True)["contacts"]


class ESM2(FairESM):
    """source: a name of SIZES in the local hub cache, or a `.pt` file; without one, random weights of a given shape."""

    def __init__(
        self,
        source: str | None = None,
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        token_dropout: bool = True,
        pretrained: bool = True,
        seed: int = 0,
    ):
        net, trained = _read(source) if pretrained else (None, False)
        if net is None:
            from esm.model.esm2 import ESM2 as Net

            shape = _shape(source, layers, width, heads)
            net = _seeded(seed, lambda: Net(*shape, "ESM-1b", token_dropout))
        _same_family(net, "ESM2", source)
        super().__init__(net, None, trained)


class ESM1b(FairESM):
    """ESM-1b and ESM-1v: learned positions, so at most `positions` - 2 residues. `source` as in ESM2."""

    roles = {
        "embed": "embed_tokens",
        "pos": "embed_positions",
        "norm.embed": "emb_layer_norm_before",
        "block": "layers.*",
        "attn": "layers.*.self_attn",
        "attn.q": "layers.*.self_attn.q_proj",
        "attn.k": "layers.*.self_attn.k_proj",
        "attn.v": "layers.*.self_attn.v_proj",
        "attn.out": "layers.*.self_attn.out_proj",
        "mlp": "layers.*.fc2",
        "mlp.in": "layers.*.fc1",
        "mlp.out": "layers.*.fc2",
        "norm": ["layers.*.self_attn_layer_norm", "layers.*.final_layer_norm"],
        "norm.final": "emb_layer_norm_after",
        "head": "lm_head.dense",
    }

    def __init__(
        self,
        source: str | None = None,
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        positions: int = 1024,
        pretrained: bool = True,
        seed: int = 0,
    ):
        net, trained = _read(source) if pretrained else (None, False)
        if net is None:
            net = _seeded(seed, lambda: _esm1b(*_shape(source, layers, width, heads), positions, not _is_1v(source)))
        _same_family(net, "ProteinBertModel", source)
        super().__init__(net, net.embed_positions.max_positions - 2, trained)
        if net.emb_layer_norm_before is None:  # ESM-1v has none
            self.roles = {role: path for role, path in self.roles.items() if role != "norm.embed"}


def _esm1b(layers: int, width: int, heads: int, positions: int, norm_before: bool):
    from esm import Alphabet, ProteinBertModel

    shape = {"layers": layers, "embed_dim": width, "ffn_embed_dim": 4 * width, "attention_heads": heads}
    flags = {"arch": "roberta_large", "token_dropout": True, "emb_layer_norm_before": norm_before}
    args = argparse.Namespace(max_positions=positions, **shape, **flags)
    return ProteinBertModel(args, Alphabet.from_architecture("ESM-1b"))


def _is_1v(source: str | None) -> bool:
    return source is not None and "esm1v" in Path(source).name


def _shape(source: str | None, layers: int, width: int, heads: int) -> tuple[int, int, int]:
    if source is None:
        return layers, width, heads
    name = Path(source).stem
    if name not in SIZES:
        raise ConfigError("backbone.source", source, list(SIZES), did_you_mean(name, SIZES))
    return SIZES[name]


def _seeded(seed: int, build):
    """The library's own initialiser under its own seed; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _same_family(net, name: str, source: str | None) -> None:
    if type(net).__name__ != name:
        raise ConfigError("backbone.source", f"{source} holds a {type(net).__name__}", f"weights of a {name}")


def _read(source: str | None):
    """(network, contact regression trained?) of a checkpoint; nothing but tensors and a Namespace is unpickled."""
    from esm.pretrained import load_model_and_alphabet_core

    file = _locate(source)
    data, regression = _load(file), file.with_name(f"{file.stem}-contact-regression.pt")
    if not isinstance(data, dict) or "model" not in data or not ("cfg" in data or "args" in data):
        raise DataError(str(file), "not a fair-esm checkpoint", "keys `model` and `cfg` or `args`")
    extra = _load(regression) if regression.is_file() else None
    family = "esm2" if "cfg" in data else "esm1"
    import warnings

    with warnings.catch_warnings():  # it warns that contacts need the regression; `contacts` refuses instead
        warnings.filterwarnings("ignore", "Regression weights not found")
        net, _ = load_model_and_alphabet_core(family, data, extra)
    return net, extra is not None


def _locate(source: str | None) -> Path:
    if source is None:
        raise ConfigError(
            "backbone.source",
            "null",
            [*SIZES, "a .pt file"],
            "set pretrained=false for random weights of a given shape",
        )
    if source.endswith(".pt"):
        if not Path(source).expanduser().is_file():
            raise ConfigError("backbone.source", f"{source}: no such file", "a fair-esm checkpoint")
        return Path(source).expanduser()
    _shape(source, 0, 0, 0)
    file = Path(torch.hub.get_dir()) / "checkpoints" / f"{source}.pt"
    if not file.is_file():
        raise EnvironmentError_(
            "backbone.source",
            f"{source}: {file} is missing",
            "weights in the local hub cache, or a .pt file",
            f"download {URL}/models/{source}.pt and {URL}/regression/{source}-contact-regression.pt into {file.parent}",
        )
    return file


def _load(file: Path):
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or foreign file
        reason = f"cannot be read: {type(error).__name__}: {str(error)[:120]}"
        raise DataError(str(file), reason, "tensors and an argparse.Namespace; never a pickle with code") from None
