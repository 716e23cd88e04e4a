"""What can be done with finished runs: predict with one, fold its adapter into the base, export it, combine several."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.config import check, plain, read
from core.errors import ConfigError, DataError

LEARNED = "task.json"  # in a run directory: what the task learned from the labels, such as the names of the classes


class Shipped(NamedTuple):
    """A run made usable: `model` has the trained adapter, active, and its head; everything in eval mode."""

    cfg: Any
    model: Any
    task: Any
    head: Any
    name: str


def open_run(directory: Path) -> Shipped:
    """The run in `directory`, built anew from its config.yaml and adapter/. DataError where it never finished."""
    cfg = read(directory)
    check(cfg)

    from core.adapters import head, load_adapter
    from core.training import assemble

    if not (directory / "adapter").is_dir():
        fix = "let the run end: the same command goes on from its checkpoint"
        raise DataError(str(directory), "no adapter/", "the directory of a finished run", fix)
    if (directory / LEARNED).exists():
        cfg.task.update(json.loads((directory / LEARNED).read_text(encoding="utf-8")))
    backbone, task = assemble.make(cfg, "backbone", cfg.seed), assemble.make(cfg, "task", cfg.seed)
    name = cfg.adapter.get("name") or "default"
    method = assemble.methods_of(cfg)
    load_adapter(backbone, directory / "adapter", name=name, head=task.head(backbone), method=method)
    return Shipped(cfg, backbone.eval(), task.eval(), head(backbone, name), name)


def predict(directory: Path, source: Path, out: Path, *, batch_size: int = 16) -> str:
    """Writes one row per item of `source` to `out` (.csv or .jsonl), in its order; says how many. Where the field
    answers in files of its own (masks, sound), `out` may be a folder for them.

    The field reads the file: `domains.<field>.predict.read(path, data)` gives the items, without labels; `data` is the
    run's own data config, which says how its columns are named. `write(run, items, out, batch_size)` fills a folder.
    """
    cfg = read(directory)
    field = importlib.import_module(f"domains.{cfg.domain}.predict")
    table, files = out.suffix in (".csv", ".jsonl"), getattr(field, "write", None)
    if not table and (files is None or out.suffix):
        allowed = "a name that ends in .csv or .jsonl" + (", or a folder" if files else "")
        raise ConfigError("--out", out.name, allowed)
    if batch_size < 1:
        raise ConfigError("--batch-size", batch_size, "1 or more")
    items = list(field.read(source, cfg.data))
    run = open_run(directory)
    if not table:
        return files(run, items, out, batch_size)
    found = list(rows(run, items, batch_size))
    text = _jsonl(found) if out.suffix == ".jsonl" else as_csv(found)
    from core.bench.result import write_whole

    write_whole(out, text)
    return f"{len(found)} predictions of {directory.name}\nlook   {out}"


def rows(run: Shipped, items: Sequence[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """Prediction rows of items, in their order; on the accelerator where there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = run.model.to(device)
    for start in range(0, len(items), batch_size):
        batch = run.task.collate(list(items[start : start + batch_size]), run.model.tokenizer)
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with torch.inference_mode():
            yield from run.task.infer(model, batch, run.head)


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Columns in order of appearance; lists and mappings as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return text.getvalue()


def merge(directory: Path, out: Path) -> str:
    """Writes the network with the adapter folded in (and the head beside it); says how exact that is.

    A network that can write its library's own folder (`save_pretrained`) does so; of another, `model.safetensors` has
    the state dict under the base's own names.
    """
    _empty(out)
    run = open_run(directory)
    from core import adapters
    from core.adapters.model import record
    from core.bench.result import write_whole

    error = None
    if not record(run.model, run.name).in_place:  # full fine-tuning: the base holds the values already
        adapters.dequantise(run.model)  # 4 bits cannot hold W'
        error = adapters.merge(run.model, run.name, keep_backup=False).max_error
    net = adapters.network(run.model)
    out.mkdir(parents=True, exist_ok=True)
    if hasattr(net, "save_pretrained"):
        net.save_pretrained(out)
        if hasattr(run.model.tokenizer, "save"):
            run.model.tokenizer.save(out)
    else:
        _save(net, out / "model.safetensors")
    if run.head is not None:
        _save(run.head, out / "head.safetensors")
    learned = json.loads((directory / LEARNED).read_text(encoding="utf-8")) if (directory / LEARNED).exists() else {}
    facts = {"run": directory.name, "backbone": plain(run.cfg.backbone), "task": learned, "max_error": error}
    write_whole(out / "merge.json", json.dumps(facts, indent=1) + "\n")
    exact = "nothing to fold" if error is None else f"relative error {error:.1e}"
    return f"merged {directory.name}: {exact}\nlook   {out}"


def _save(module: Any, path: Path) -> None:
    """A module's state dict as safetensors; tied tensors once, under their first name."""
    from safetensors.torch import save_file

    kept, seen = {}, set()
    for key, tensor in module.state_dict().items():
        if (place := (tensor.data_ptr(), tensor.shape)) not in seen or not tensor.numel():
            kept[key] = tensor.detach().cpu().contiguous()
            seen.add(place)
    save_file(kept, path, metadata={"format": "pt"})


def export(directory: Path, out: Path) -> str:
    """Writes the adapter in Hugging Face peft's layout. UnsupportedError: the method has no exact equivalent there."""
    _empty(out)
    run = open_run(directory)
    from core.adapters import export_peft

    export_peft(run.model, out, run.name)
    return f"exported {directory.name} in the layout of peft\nlook   {out}"


def combine(directories: Sequence[Path], out: Path, *, weights: str | None, rank: str | None, **options: Any) -> str:
    """Writes a combination of the adapters of runs on one base as a run of its own: its config.yaml, adapter/ and what
    the task has learned, so that predict, merge and export take it. Says what was lost."""
    _empty(out)
    try:
        numbers = None if weights is None else [float(word) for word in weights.split(",")]
    except ValueError:
        raise ConfigError("--weights", weights, "numbers with commas between: 0.5,0.5") from None
    if rank is not None and rank != "full":
        if not rank.isdigit():
            raise ConfigError("--rank", rank, "a whole number, or full")
        rank = int(rank)
    for directory in directories:
        if not (directory / "adapter").is_dir():
            raise DataError(str(directory), "no adapter/", "the directory of a finished run", "atlas report shows them")
    cfg = read(directories[0])
    check(cfg)

    import yaml

    from core.adapters import combine_adapters
    from core.bench.result import write_whole
    from core.training import assemble

    options = {"weights": numbers, "rank": rank, **options}
    done = combine_adapters(
        assemble.make(cfg, "backbone", cfg.seed), [d / "adapter" for d in directories], out / "adapter", **options
    )
    record = json.loads((out / "adapter" / "adapter.json").read_text(encoding="utf-8"))
    whole = plain(cfg)
    target = source_of(record["method"])
    whole["adapter"] = {"_target_": target, "targets": record["targets"] or None, **record["options"]}
    kept = directories[max(0, options["head"])]
    if (kept / LEARNED).exists():
        write_whole(out / LEARNED, (kept / LEARNED).read_text(encoding="utf-8"))
    whole["task"] = plain(read(kept))["task"]
    names = " ".join(map(str, directories))
    text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
    write_whole(out / "config.yaml", f"# atlas combine {names} --how {options['how']} --out {out}\n{text}")
    return f"{done}\nlook   {out}\nnext   atlas predict {out} --input FILE --out FILE"


def source_of(method: str) -> str:
    """The dotted name of a method's class."""
    from core import catalog

    return catalog.method(method).definition.target


def _empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", f"{out} exists and is not empty", "a new folder", "name another")
