"""What a run would train and keep: its parts are built and adapted, nothing is fitted or written."""

from __future__ import annotations

from collections.abc import Sequence

from core.compose import compose
from core.config import check


def plan(domain: str, overrides: Sequence[str] = (), *, sites: bool = False) -> str:
    """The text of `atlas plan`: sites, parameters, bytes, what the first batch keeps for its backward pass, operations.

    sites   one row per site instead of one per role
    """
    cfg = compose(domain, overrides)
    check(cfg)

    from core.adapters import head, summary, trainable
    from core.adapters.cost import measure
    from core.adapters.probe import pristine
    from core.training import assemble
    from core.training.module import PeftModule

    parts = assemble.parts(cfg)
    model, name = assemble.adapt(cfg, parts.backbone, parts.task.head(parts.backbone))
    tensors, own = trainable(model, name), head(model, name)
    module = PeftModule(model, parts.task, assemble.optim(cfg), tensors=tensors, head=own, fingerprint="")
    batch = assemble.loaders(cfg, parts).first()
    with pristine(module):
        module.train()
        kept, forward, backward = measure(module, lambda: module.losses(batch)[0])
    table, count = summary(model, name), len(batch["ids"])
    names = cfg.choices
    kind = " (synthetic)" if parts.data.kind == "twin" else ""
    lines = [
        f"{names.adapter} on {names.backbone}, task {names.task}, data {names.data}{kind}: a plan, nothing is trained",
        *(f"  {line}" for line in (_sites(table) if sites else str(table)).splitlines()),
        f"  adapter  {_mebibytes(sum(t.numel() * t.element_size() for t in tensors.values()))} on disk, head included",
        f"  saved    {_mebibytes(kept)} for the backward pass of the first batch, {count} items",
        f"  compute  {forward / count:.3g} FLOP forward, {backward / count:.3g} backward, per item",
    ]
    return "\n".join(lines)


def _sites(table) -> str:
    from core.cli import table as columns

    rows = [
        (r.site, r.path, r.why, r.order, " x ".join(map(str, r.shape)), f"{r.parameters:,}", r.host) for r in table.rows
    ]
    total = ("total", "", "", "", "", f"{table.parameters:,}", f"of {table.base:,}")
    return columns(("site", "path", "why", "order", "out x in", "parameters", "host"), [*rows, total])


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"
