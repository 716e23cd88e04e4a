"""How Hugging Face peft writes one method: data beside the method, as its class attribute `peft`.

    peft = PeftForm("HIRA", {"hira_A": "A.k", "hira_B": "B.1"}, keys={"r": "rank"}, hosts=(*LINEAR, *CONVOLUTIONS))

says: their type; the end of each of their tensors' names and the tensor of ours that it is; their configuration's keys
and the options of ours that they are; the hosts on which both definitions agree. Where names alone do not do it,
functions beside the method convert. Methods without a form whose change is low rank (`factors`, no `gain`) are written
as plain LoRA; starts taken from W as an offset have rank 2r there, B' = [B, B0] and A' = [A; -A0] up to grouping.

`write` and `read` of a whole adapter: core/adapters/peft_format.py, peft_import.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.op import Op, Rows
from core.errors import UnsupportedError

LINEAR = ("Linear", "Conv1D")
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


@dataclass(frozen=True)
class Place:
    """One module of the network with our methods on it: one, or several on rows of a fused weight."""

    path: str
    host: nn.Module
    op: Op  # of the whole weight
    W: Tensor  # (out, in) fp32, the whole weight
    rows: tuple[Rows | None, ...]
    methods: tuple[Any, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(getattr(self.op, "kernel", ()))

    def index(self, part: int) -> Tensor:
        """(rows,) output rows of one method."""
        rows = self.rows[part]
        return torch.arange(len(self.W)) if rows is None else rows.index()


@dataclass(frozen=True)
class PeftForm:
    """type      their peft_type
    tensors   their name -> ours; ours may end in .T (transposed), .k (in as channels x kernel), .1 (ones for a kernel)
    keys      their configuration's key -> our option
    fixed     what else their configuration says; another value there is another definition, and refused on reading
    writes    what else is written, whatever is read
    hosts     kinds on which both agree
    fused     whether sites on rows of one fused weight can be one module of theirs
    names     their tensors' names, where `tensors` does not list them
    shared    names of theirs that belong to no module
    is_for    (configuration) -> whether a folder of this type is this method's
    refuses   (place, options) -> why a site cannot be written, "" where it can
    write     (place, options) -> their name -> tensor           config  (places, options) -> entries of theirs
    read      (configuration, path -> their name -> tensor, path -> (out, in)) -> (options, path -> our name -> tensor)
    role      (configuration, path, role) -> the role at which our method must be attached
    unfit     (host, their name -> tensor) -> why a module of theirs cannot be read, "" where it can
    agrees    (method, tensors that belong to no module) -> why not, "" where what is not in a module agrees
    also      further types of theirs that are read as this method
    whole     their modules are trained whole, a tensor per parameter
    as_another   the form in which the method is written, where it can only be read in its own"""

    type: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    writes: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = LINEAR
    fused: bool = False
    names: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    is_for: Callable[[dict], bool] = lambda config: True
    refuses: Callable[[Place, dict], str] = lambda place, options: ""
    write: Callable[[Place, dict], dict[str, Tensor]] | None = None
    config: Callable[[list[Place], dict], dict] = lambda places, options: {}
    read: Callable[[dict, dict, dict], tuple[dict, dict]] | None = None
    role: Callable[[dict, str, str], str] = lambda config, path, role: role
    unfit: Callable[[nn.Module, Mapping[str, Tensor]], str] = lambda host, tensors: ""
    agrees: Callable[[Any, Mapping[str, Tensor]], str] = lambda method, shared: ""
    also: tuple[str, ...] = ()
    whole: bool = False
    as_another: PeftForm | None = None

    def reads(self, kind: str) -> bool:
        return kind in (self.type, *self.also)

    def ends(self) -> tuple[str, ...]:
        return self.names or tuple(self.tensors)

    def written(self, place: Place, options: dict) -> dict[str, Tensor]:
        if self.write is not None:
            return self.write(place, options)
        own = place.methods[0].state_dict()
        return {theirs: _shaped(own[name], how, place) for theirs, (name, how) in self._spelled().items()}

    def entries(self, places: list[Place], options: dict) -> dict:
        """Their configuration, without what all types share; without places, that of an adapter yet to be made."""
        keys = {theirs: options[ours] for theirs, ours in self.keys.items() if ours in options}
        return {**keys, **self.fixed, **self.writes, **self.config(places, options)}

    def found(self, config: dict, tensors: Mapping[str, Mapping[str, Tensor]], shapes: dict) -> tuple[dict, dict]:
        """(our options, path -> our name -> tensor)"""
        if self.whole:
            return {}, tensors
        if self.read is not None:
            return self.read(config, tensors, shapes)
        return self.options(config), {path: self.renamed(own) for path, own in tensors.items()}

    def options(self, config: dict) -> dict:
        return {ours: config[theirs] for theirs, ours in self.keys.items() if theirs in config}

    def renamed(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spelled = self._spelled()
        return {spelled[end][0]: t.T if spelled[end][1] == "T" else t for end, t in own.items()}

    def _spelled(self) -> dict[str, tuple[str, str]]:
        return {theirs: (*ours.split("."), "")[:2] for theirs, ours in self.tensors.items()}


def _shaped(tensor: Tensor, how: str, place: Place) -> Tensor:
    if how == "T":
        return tensor.T
    if how == "k":
        return tensor.reshape(len(tensor), -1, *place.kernel)
    return tensor.reshape(*tensor.shape, *[1] * len(place.kernel)) if how == "1" else tensor


def form_of(cls: type) -> PeftForm | None:
    """The form in which a method is written: its own; plain LoRA's for any other low-rank change; None where theirs has
    no equivalent."""
    own = getattr(cls, "peft", None)
    if own is not None:
        return own.as_another or own
    low = getattr(cls, "factors", None) is not None and getattr(cls, "gain", None) is None
    return lora_form() if low else None


def capped(place: Place, options: dict) -> str:
    """A refusal of sites that took a lower rank than the adapter's."""
    most = min(place.W.shape)
    return "" if options["rank"] <= most else f"rank {options['rank']} on {tuple(place.W.shape)}: only {most} are there"


def same(name: str, values) -> Any:
    """The one value of all modules; UnsupportedError where there are several."""
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        raise UnsupportedError(f"adapter_config.json: {name}", f"{found} in different modules", "one value for all")
    return found[0]


def matching(patterns: list[str] | str | None, path: str) -> bool:
    """Whether their list of names (or one regular expression) selects a path."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in patterns or [])


# LoRA and what is written as LoRA ------------------------------------------------------------------------------------

LORA_KEYS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "m",
}


def lora_form(magnitude: bool = False) -> PeftForm:
    """LoRA's, or with a magnitude per output DoRA's. Rows of a fused weight: A stacked, B in blocks, rank the sum."""
    return PeftForm(
        "LORA",
        names=tuple(LORA_KEYS),
        keys={"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"},
        fixed={"use_dora": magnitude},
        hosts=(*LINEAR, *CONVOLUTIONS) if magnitude else (*LINEAR, *CONVOLUTIONS, "Embedding"),
        fused=True,
        is_for=lambda config: bool(config.get("use_dora")) == magnitude,
        write=lambda place, options: _stacked(place, magnitude),
        config=_lora_config,
        read=_shared_scale,
    )


def _scale(method) -> float:
    return getattr(method, "scale", None) or method.factors().scale


def _stacked(place: Place, magnitude: bool) -> dict[str, Tensor]:
    with torch.no_grad():
        factors = [method.factors() for method in place.methods]
        scale = _scale(place.methods[0])
        A = torch.cat([f.A for f in factors])
        B, m = place.W.new_zeros(len(place.W), len(A)), place.W.norm(dim=1)
        first = 0
        for part, f in enumerate(factors):
            index, rank = place.index(part).to(B.device), len(f.A)
            B[index[:, None], torch.arange(first, first + rank, device=B.device)] = f.B * (f.scale / scale)
            if magnitude:
                m[index] = place.methods[part].m
            first += rank
    ones = [1] * len(place.kernel)
    if place.kernel:
        A, B, m = A.reshape(len(A), -1, *place.kernel), B.reshape(*B.shape, *ones), m.view(1, -1, *ones)
    lookup = place.op.kind == "Embedding"
    names = ("lora_embedding_A", "lora_embedding_B") if lookup else ("lora_A.weight", "lora_B.weight")
    return dict(zip(names, (A, B), strict=True)) | ({"lora_magnitude_vector": m} if magnitude else {})


def _lora_config(places: list[Place], options: dict) -> dict:
    if not places:
        return {}
    ranks = {place.path: sum(len(m.factors().A) for m in place.methods) for place in places}
    scales = {place.path: _scale(place.methods[0]) for place in places}
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    scale = next(iter(scales.values()))
    other = [path for path in ranks if (ranks[path], scales[path]) != (rank, scale)]
    return {
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": {re.escape(path): ranks[path] for path in other},
        "alpha_pattern": {re.escape(path): scales[path] * ranks[path] for path in other},
        "lora_dropout": options.get("dropout", 0.0),
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _shared_scale(config: dict, found: Mapping[str, Mapping[str, Tensor]], shapes: dict) -> tuple[dict, dict]:
    """(options, tensors): one rank and one scale for all modules; the others' B is rescaled, A and B padded."""
    found = {path: {LORA_KEYS[end]: t for end, t in own.items()} for path, own in found.items()}
    ranks = {path: len(t["A"]) for path, t in found.items()}
    scales = {}
    for path, rank in ranks.items():
        alpha = _pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
        scales[path] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    rank, scale = max(ranks.values()), next(iter(scales.values()))
    fill = {}
    for path, tensors in found.items():
        A, B = tensors["A"].flatten(1), tensors["B"].flatten(1) * (scales[path] / scale)
        pad = rank - len(A)
        fill[path] = {"A": nn.functional.pad(A, (0, 0, 0, pad)), "B": nn.functional.pad(B, (0, pad))}
        if "m" in tensors:
            fill[path]["m"] = tensors["m"]
    return {"rank": rank, "alpha": scale * rank, "dropout": config.get("lora_dropout", 0.0)}, fill


def _pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
