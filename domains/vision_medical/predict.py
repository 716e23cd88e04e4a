"""New images for a trained run: `atlas predict RUN --input scans --out masks`. No labels are read.

Input   a picture, a NIfTI file, a folder of them, or a csv with the run's own image column
Output  X.csv, X.jsonl: a row per image. A folder: a mask per image on that image's own grid, NIfTI (with its affine)
        for NIfTI, PNG for pictures; of a classification, predictions.csv
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError


def read(path: Path, data: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Items (id, group, image, read) of a file or folder, in its order, prepared as the run's own data was.

    data   the run's `data` config; None and the twin's: grey pictures with mean 0 and deviation 1
    DataError   nothing there, a file that no reader knows, a csv without the image column, a missing file
    """
    from core.data.text import Faults
    from domains.vision_medical.data import files

    data, path = data or {}, Path(path).expanduser()
    prepare, spacing = _prepare(data), data.get("spacing") if isinstance(data.get("spacing"), (list, tuple)) else None
    if not path.exists():
        raise DataError(str(path), "no such file or folder", "a picture, a NIfTI file, a folder of them, a csv")
    if path.is_dir():
        found = [(files.stem(image.relative_to(path)), image) for image in files.images(path)]
    elif files.suffix(path.name) in (*files.PICTURES, *files.VOLUMES):
        found = [(files.stem(Path(path.name)), path)]
    else:
        found = _table(path, data)
    faults, seen = Faults(str(path)), set()
    for name, image in found:
        if name in seen:
            faults.add(None, "id", f"`{name}` again ({image.name})", "each id once")
        seen.add(name)
    faults.check()
    return [
        {"id": name, "group": name, "image": str(image), "read": files.read_with(image, None, prepare, spacing)}
        for name, image in found
    ]


def _prepare(data: Mapping[str, Any]):
    from domains.vision_medical.data.prepare import Prepare

    node = data.get("prepare")
    if node is None:
        return Prepare(channels=1, intensity="zscore")
    plain = {k: list(v) if _is_list(v) else v for k, v in node.items() if not k.startswith("_")}
    return Prepare(**plain)


def _is_list(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__iter__")


def _table(path: Path, data: Mapping[str, Any]) -> list[tuple[str, Path]]:
    from core.data.text import Faults, read_table, require
    from domains.vision_medical.data import files
    from domains.vision_medical.data.table import existing

    column = data.get("image") if isinstance(data.get("image"), str) else "path"
    table = read_table(str(path))
    require(table, [("data.image", column)])
    name = data.get("id") if data.get("id") in table.columns else ("id" if "id" in table.columns else None)
    faults, found = Faults(table.file), []
    for line, cells in table.rows:
        image = existing(faults, line, column, path.parent, cells[column])
        if image is not None:
            found.append((cells[name].strip() if name else files.stem(Path(cells[column].strip())), image))
    faults.check()
    return found


def write(run: Any, items: list[dict[str, Any]], out: Path, batch_size: int) -> str:
    """Fills the folder `out`; says how many. ConfigError where it exists and is not empty.

    run   core.ship.Shipped
    """
    from core.ship import as_csv, rows
    from domains.vision_medical import masks

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", f"{out} exists and is not empty", "a new folder", "name another")
    found = list(rows(run, items, batch_size))
    if not all(masks.is_mask(row["prediction"]) for row in found):
        from core.bench.result import write_whole

        write_whole(out / "predictions.csv", as_csv(found))
        return f"{len(found)} predictions\nlook   {out / 'predictions.csv'}"
    values = stored_values(run.cfg.data, len(run.task.classes))
    for item, row in zip(items, found, strict=True):
        mask = values[masks.decode(row["prediction"])]
        target = out / (item["id"] + (".nii.gz" if _is_volume(item) else ".png"))
        target.parent.mkdir(parents=True, exist_ok=True)
        (_volume if _is_volume(item) else _picture)(mask, item, target)
    return f"{len(found)} masks\nlook   {out}"


def stored_values(data: Mapping[str, Any], count: int):
    """(classes,) uint8: what each class is in a mask file: the training masks' own values where the run's config names
    them; else 0 to n, and 255 for a single class."""
    import numpy as np

    named = data.get("classes")
    if isinstance(named, Mapping) and len(named) == count - 1:
        return np.array([0, *named.values()], np.uint8)
    return np.array([0, 255] if count == 2 else range(count), np.uint8)


def _is_volume(item: Mapping[str, Any]) -> bool:
    from domains.vision_medical.data import files

    return files.suffix(item["image"]) in files.VOLUMES


def _picture(mask, item: Mapping[str, Any], target: Path) -> None:
    import numpy as np
    from PIL import Image

    from domains.vision_medical.data.prepare import resized

    shape = item["read"].raw()["image"].shape[1:]
    if mask.shape != shape:
        mask = resized(mask[None].astype(np.float32), shape, nearest=True)[0].astype(np.uint8)
    _whole(target, lambda part: Image.fromarray(mask).save(part, format="PNG"))


def _volume(mask, item: Mapping[str, Any], target: Path) -> None:
    """The mask on the grid of the file that it belongs to, with that file's affine."""
    import nibabel
    import numpy as np
    from nibabel.processing import resample_from_to

    source = nibabel.load(item["image"])
    shape = source.shape[:3]
    made = nibabel.Nifti1Image(mask.astype(np.uint8), item["read"]()["affine"])
    if mask.shape != shape or not np.allclose(made.affine, source.affine):
        made = resample_from_to(made, (shape, source.affine), order=0, mode="constant", cval=0)
    header = source.header.copy()
    header.set_data_dtype(np.uint8)
    header["scl_slope"], header["scl_inter"] = 1, 0
    # The array is written as it is, whatever the image's own scaling was.
    made = nibabel.Nifti1Image(np.asarray(made.dataobj).round().astype(np.uint8), source.affine, header)
    _whole(target, lambda part: nibabel.save(made, part))


def _whole(target: Path, save) -> None:
    """A reader sees the whole file or none."""
    part = target.with_name("." + target.name)  # the suffix stays: writers go by it
    save(part)
    os.replace(part, target)
