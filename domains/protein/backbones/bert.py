"""ProtBERT, AntiBERTy and Sapiens: protein LMs of BERT and RoBERTa type.
Papers      Elnaggar et al. 2022, TPAMI 44; Ruffolo et al. 2021, arXiv 2112.07782; Prihoda et al. 2022, mAbs 14
Tokens      ids are the line numbers of vocab.txt; [CLS] or <s> in front, [SEP] or </s> behind
Hidden      (batch, tokens, channels)
Limit       learned positions: a longer sequence is a DataError, never cut.
Sublayers   `attn` and `mlp` are the projections before the residual sum: transformers adds inside `output`.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Literal

import torch

from core import weights
from core.contracts import Backbone, Output, TokenPort
from core.errors import ConfigError, EnvironmentError_
from core.paths import data_dir
from domains.protein.backbones import tokens

DROPOUT_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEADS = {"bert": "cls.predictions.transform.dense", "roberta": "lm_head.dense"}


class ProteinBert(Backbone):
    """source: folder or hub repository with config.json, weights and vocab.txt, or the name `sapiens_vh`, `sapiens_vl`
    (folder of real data) or `antiberty` (the package's own files); without one, random weights of the shape given."""

    roles = {
        "embed": "*.embeddings.word_embeddings",
        "pos": "*.embeddings.position_embeddings",
        "block": "*.encoder.layer.*",
        "attn": "*.encoder.layer.*.attention.output.dense",
        "attn.q": "*.encoder.layer.*.attention.self.query",
        "attn.k": "*.encoder.layer.*.attention.self.key",
        "attn.v": "*.encoder.layer.*.attention.self.value",
        "attn.out": "*.encoder.layer.*.attention.output.dense",
        "mlp": "*.encoder.layer.*.output.dense",
        "mlp.in": "*.encoder.layer.*.intermediate.dense",
        "mlp.out": "*.encoder.layer.*.output.dense",
        "norm": [
            "*.embeddings.LayerNorm",
            "*.encoder.layer.*.attention.output.LayerNorm",
            "*.encoder.layer.*.output.LayerNorm",
        ],
        "head": ["cls.predictions.transform.dense", "lm_head.dense"],
    }

    def __init__(
        self,
        source: str | None = None,
        family: Literal["bert", "roberta"] = "bert",
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        positions: int = 64,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if source is None:
            if pretrained:
                fix = "set pretrained=false for random weights of a given shape"
                raise ConfigError("backbone.source", "null", "a folder, owner/name of a hub repository, or a name", fix)
            settings = _shape(family, layers, width, heads, positions)
            vocabulary = ["<pad>", "<unk>", "<cls>", "<eos>", "<mask>", *tokens.STANDARD]
        else:
            path = _folder(source)
            settings = {**weights.configuration(path / "config.json"), **DROPOUT_OFF}
            vocabulary = _vocabulary(path)
        self.family = settings.get("model_type")
        if self.family not in HEADS:
            raise ConfigError("backbone.source", f"{source} is of type {self.family}", list(HEADS))
        self.net, config = _build(self.family, settings, seed)
        absent: set[str] = set()
        if source is not None and pretrained:
            optional = (HEADS[self.family].split(".")[0] + ".",)
            absent = weights.fill(self.net, weights.state(path), prefix=self.family, optional=optional, where=source)
        self.speaks = not absent
        self.width, self.heads = config.hidden_size, config.num_attention_heads
        offset = config.pad_token_id + 1 if self.family == "roberta" else 0  # RoBERTa counts positions from pad + 1
        self.tokenizer = tokens.lines(vocabulary, config.max_position_embeddings - offset - 2)
        # BERT takes explicit positions; RoBERTa's start at pad + 1 and are best left to the model.
        self.token_port = TokenPort(
            model=self.family,
            embed="embeddings.word_embeddings",
            positions="position_ids" if self.family == "bert" else None,
            leading=1,
            blocks=f"{self.family}.encoder.layer.*",
            bmask="attention_mask",
            bkind="add4d",
            wrap=self.family,
            tokens_out=("hidden_states",),
            dim=self.width,
            attn=f"{self.family}.encoder.layer.*.attention.self",
            heads="num_attention_heads",
            head_dim="attention_head_size",
        )
        head = {"head": HEADS[self.family]} if self.speaks else {}
        self.roles = {role: pattern for role, pattern in self.roles.items() if role != "head"} | head

    def example(self):
        return (self.tokenizer(["EVQLVE", "EVQ"]),), {}

    def forward(self, batch) -> Output:
        inner = self.net.bert if self.family == "bert" else self.net.roberta
        hidden = inner(input_ids=batch["tokens"], attention_mask=batch["mask"]).last_hidden_state
        if not self.speaks:
            return Output(hidden, batch["residues"])
        speak = self.net.cls if self.family == "bert" else self.net.lm_head
        return Output(hidden, batch["residues"], speak(hidden))


def _shape(family: str, layers: int, width: int, heads: int, positions: int) -> dict:
    return {
        "model_type": family,
        "vocab_size": 25,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
        **DROPOUT_OFF,
    }


def _build(family: str, settings: dict, seed: int):
    """(network, configuration) from the library's initialiser under its own seed."""
    from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

    known = {"bert": (BertConfig, BertForMaskedLM), "roberta": (RobertaConfig, RobertaForMaskedLM)}
    make_config, make_net = known[family]
    config = make_config(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_net(config).eval(), config


def _folder(source: str) -> Path:
    if source in ("sapiens_vh", "sapiens_vl"):
        root = data_dir()
        path = root / "protein" / "weights" / source if root else None
        if path is None or not path.is_dir():
            raise EnvironmentError_(
                "backbone.source",
                f"{source}: no folder {path or 'of real data'}",
                "config.json, model.safetensors and vocab.txt (converted from the package sapiens==1.0.5)",
                f"set PEFT_ATLAS_DATA to the folder with protein/weights/{source}, or backbone.source to the weights",
            )
        return path
    if source == "antiberty":
        found = util.find_spec("antiberty")  # looked up, not imported
        if found is None or not found.submodule_search_locations:
            raise EnvironmentError_(
                "backbone.source",
                "antiberty: the package is not installed",
                "the package's trained_models, or a folder with them",
                "pip install --no-deps antiberty==0.1.3, or unpack its wheel and set backbone.source to that folder",
            )
        return _antiberty(Path(next(iter(found.submodule_search_locations))))
    return _antiberty(weights.folder(source))


def _antiberty(path: Path) -> Path:
    """The weights inside an AntiBERTy package (or an unpacked wheel); any other folder as it is."""
    inside = sorted(path.glob("**/trained_models/AntiBERTy_md_smooth")) if not (path / "config.json").is_file() else []
    return inside[0] if inside else path


def _vocabulary(path: Path) -> list[str]:
    for file in (path / "vocab.txt", path.parent / "vocab.txt"):  # AntiBERTy keeps it one folder up
        if file.is_file():
            return file.read_text().split("\n")
    raise ConfigError("backbone.source", f"{path} has no vocab.txt", "one token a line; its number is its id")
