"""A class for every pixel or voxel.

item     read() gives a mask of class indices beside the image; spacing in mm
row      truth and prediction as run lengths (masks.py), spacing; voxels {class: [truth, prediction, both]}; in the last
         evaluation also hd95 (mm) and nsd {class: number or null}; score = mean Dice over the classes that count
Loss     soft Dice and cross entropy, each over the whole batch (MONAI's DiceCELoss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from operator import le
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError, DataError, Problem, refuse
from domains.vision_medical import masks, metrics
from domains.vision_medical.metrics import Overlap
from domains.vision_medical.tasks import reading
from domains.vision_medical.tasks.heads import PixelHead, started


class Segmentation(Task):
    """Headline: mean over images of the mean Dice of their classes, background left out; intervals draw patients.

    classes    names from the background on; null: those of the data
    window     voxels that the network sees at once, where images are larger or of other sizes; null: whole images
    overlap    of neighbouring windows, which are weighted by a Gaussian (MONAI's sliding window)
    tolerance  mm within which a surface counts as found (nsd)
    """

    metric = "dice"

    def __init__(
        self,
        classes: list[str] | None = None,
        window: list[int] | None = None,
        overlap: float = 0.25,
        tolerance: float = 2.0,
    ):
        super().__init__()
        self.classes = list(classes) if classes else None
        self.window, self.overlap, self.tolerance = tuple(window) if window else None, overlap, tolerance
        if not 0 <= overlap < 1:
            raise ConfigError("task.overlap", overlap, "a share from 0 to below 1")
        self.load: Callable[[str], dict[str, Any]] | None = None

    def check(self, data: Data, backbone: Backbone) -> None:
        if not hasattr(backbone, "misfit"):
            got = f"task=segmentation on {type(backbone).__name__}"
            raise ConfigError("backbone", got, "a network with features per pixel", "backbone=segresnet_mini")
        reading.check_images(data, backbone)
        named = list(getattr(data, "classes", None) or [])
        if self.classes is None and not named:
            raise DataError("mask", "none in the data", "a mask for every image", "data=pairs, or task=classification")
        if self.classes is None:
            self.classes = named
        if named and len(named) != len(self.classes):
            raise ConfigError("task.classes", self.classes, f"{len(named)} names, as the data: {', '.join(named)}")
        if len(self.classes) < 2:
            raise ConfigError("task.classes", self.classes, "the background and at least one class")
        if self.window is not None and (problem := backbone.misfit(self.window)):
            raise ConfigError(problems=[problem._replace(where="task.window")])
        for split, item in reading.every(data):
            size = reading.training_size(item) if split == "train" else tuple(item["shape"])
            problem = backbone.misfit(size)
            if problem and (split == "train" or self.window is None):
                fix = "data.augment.patch: training crops" if split == "train" and self.window else problem.fix
                raise ConfigError(problems=[problem._replace(where=f"{problem.where}, {item['id']}", fix=fix)])
        self.load = reading.Loading(data)

    def head(self, backbone: Backbone) -> nn.Module:
        if self.classes is None:
            raise ConfigError("task.classes", "null", "class names, or data with masks")
        head = PixelHead(backbone.width, len(self.classes), backbone.spatial)
        started(head, backbone, self.classes)
        return head

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`mask` (batch, *spatial) int64 where the items have one."""
        arrays, batch = reading.read(items)
        if all("mask" in a for a in arrays):
            batch["mask"] = reading.stacked([a["mask"][None] for a in arrays])[:, 0]
            greatest = [(name, int(a["mask"].max())) for name, a in zip(batch["ids"], arrays, strict=True)]
            allowed = f"0 to {len(self.classes) - 1}: {', '.join(self.classes)}"
            strange = [(name, k) for name, k in greatest if k >= len(self.classes)]
            refuse([Problem(f"{name}: mask", f"class {k}", allowed) for name, k in strange])
        batch["windows"] = len(set(batch["sizes"])) > 1 or self.window not in (None, batch["sizes"][0])
        return batch

    @cached_property
    def criterion(self) -> nn.Module:
        from monai.losses import DiceCELoss

        return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Images that are only seen through windows have no loss: 0 of 0 items."""
        count = len(batch["ids"])
        if output.hidden is None:
            return torch.tensor(0.0), torch.tensor(0)
        scores = head(output.hidden)
        total = self.criterion(scores, batch["mask"].unsqueeze(1)) * count
        return total, torch.tensor(count, device=scores.device)

    # ------------------------------------------------------------------ prediction

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> Iterator[dict[str, Any]]:
        yield from self._rows(head(output.hidden), batch, final=True)

    def infer(
        self,
        model: nn.Module,
        batch: dict[str, Any],
        head: nn.Module | None,
        output: Output | None = None,
        *,
        final: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Rows by one forward pass where the images fit, else image by image through windows."""
        if output is None or output.hidden is None:
            each = zip(batch["image"], batch["sizes"], strict=True)
            images = [image[(slice(None), *map(slice, size))] for image, size in each]
            parts = [image[None] for image in images] if batch["windows"] else [torch.stack(images)]
            scores = [one for part in parts for one in self.scores(model, part, head)]
        else:
            scores = head(output.hidden)
        yield from self._rows(scores, batch, final=final)

    def scores(self, model: nn.Module, image: Tensor, head: nn.Module) -> Tensor:
        """(batch, classes, *spatial) scores of images that may be larger than the window.

        ConfigError   an image of a size that the network cannot take, and no window"""

        def forward(part: Tensor) -> Tensor:
            return head(model({"image": part}).hidden)

        size = tuple(image.shape[2:])
        if self.window is None or (model.misfit(size) is None and all(map(le, size, self.window))):
            return forward(image)
        from monai.inferers import sliding_window_inference

        return sliding_window_inference(image, self.window, 4, forward, overlap=self.overlap, mode="gaussian")

    def _rows(self, scores: Any, batch: dict[str, Any], *, final: bool) -> Iterator[dict[str, Any]]:
        known = batch["mask"].cpu().numpy() if "mask" in batch else [None] * len(batch["ids"])
        for one, name, truth, size, spacing in zip(
            scores, batch["ids"], known, batch["sizes"], batch["spacing"], strict=True
        ):
            at = tuple(map(slice, size))
            found = one.argmax(0).cpu().numpy()[at]
            yield self.row(name, found, None if truth is None else truth[at], spacing, final=final)

    def row(self, identity: str, found: np.ndarray, truth: np.ndarray | None, spacing, *, final: bool = True):
        """A prediction row; the same form serves baselines.

        found, truth   (*spatial) class indices      final   with the distances of surfaces, which take their time"""
        out: dict[str, Any] = {"id": identity, "prediction": masks.encode(found), "spacing": list(spacing)}
        if truth is None:
            return out
        pairs = {name: (truth == k, found == k) for k, name in enumerate(self.classes) if k}
        out |= {"truth": masks.encode(truth), "voxels": {name: list(metrics.overlap(*p)) for name, p in pairs.items()}}
        if final:
            both = {name: metrics.surfaces(*p, spacing, self.tolerance) for name, p in pairs.items()}
            out |= {key: {name: pair[i] for name, pair in both.items()} for i, key in enumerate(("hd95", "nsd"))}
        return out

    # ------------------------------------------------------------------ scores

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """dice with its interval, iou, hd95, nsd, each a mean over images and classes that count; dice of every class
        where there are several; n_scored, n_missed, n_fp, n_empty: what became of every image and class."""
        overlaps = [{name: Overlap(*counts) for name, counts in row["voxels"].items()} for row in rows]
        for row, found in zip(rows, overlaps, strict=True):
            row["score"] = _mean([o.dice for o in found.values()])
        dice = measures.mean([row["score"] for row in rows])
        scored = [row for row in rows if row["score"] is not None]
        out = {"dice": dice._replace(ci95=measures.headline("dice", scored))}
        names = self.classes[1:]
        if len(names) > 1:
            out |= {f"dice_{name.replace(' ', '_')}": measures.mean([o[name].dice for o in overlaps]) for name in names}
        out["iou"] = measures.mean([_mean([o.iou for o in found.values()]) for found in overlaps])
        for key, unit in (("hd95", "mm"), ("nsd", "")):
            if all(key in row for row in rows):
                values = [_mean(list(row[key].values())) for row in rows]
                out[key] = measures.mean(values, unit, better=key == "nsd")
        states = [o.state for found in overlaps for o in found.values()]
        counts = {f"n_{state}": states.count(state) for state in ("scored", "missed", "fp", "empty")}
        return out | {key: Metric(float(n), "", key == "n_scored", len(states)) for key, n in counts.items()}

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        """Rows of the base with the last layer that it was trained with, where that answered for the same classes."""
        head = PixelHead(backbone.width, len(self.classes), backbone.spatial)
        if not started(head, backbone, self.classes):
            return None
        device = next(backbone.parameters()).device
        rows: list[dict[str, Any]] = []
        for item in data.items("test"):
            batch = self.collate([item], None)
            batch["image"] = batch["image"].to(device)
            rows += self.infer(backbone, batch, head.to(device).eval())
        return rows

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.vision_medical import baselines

        return baselines.masks(data, self.classes, self.row)

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.vision_medical import pictures

        return pictures.segmentation(rows, self.classes, directory, self.load)


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
