"""Readers: what an item carries in `item["read"]`, a few strings, picklable; calling one opens the file.

read()   {"image": (channels, *spatial) float32, "mask": (*spatial) int64 where there is one, "spacing": mm per voxel
         along each spatial axis, "affine": (4, 4) of the image as returned, for volumes}
raw()    {"image" as stored (channels, *spatial), "mask" as stored or None, "spacing", "affine" or None, "mask_affine"
         where the mask has its own}: for checks

Errors while reading are DataError with the file's name.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError
from domains.vision_medical.data.prepare import Prepare

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
VOLUMES = (".nii", ".nii.gz")
CACHE = 256 * 2**20  # bytes of ready volumes kept in memory, per process

Read = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """values   (stored value, class index) pairs of the mask; None: everything above 0 is class 1
    spacing  mm per pixel of pictures, None: 1 pixel counts as 1
    """

    image: str
    mask: str | None = None
    prepare: Prepare = field(default_factory=Prepare)
    values: tuple[tuple[int, int], ...] | None = None
    spacing: tuple[float, ...] | None = None

    def raw(self) -> Read:
        raise NotImplementedError

    def __call__(self) -> Read:
        raw = self.raw()
        shape = raw["image"].shape[1:]
        out = {"image": self.prepare.image(raw["image"]), "spacing": self.prepare.pixel(raw["spacing"], shape)}
        if raw["mask"] is not None:
            out["mask"] = self.prepare.mask(self.indices(raw["mask"]))
        return out

    def shape(self, raw: Read) -> tuple[int, ...]:
        """(channels, *spatial) of the image as `read()` returns it."""
        channels, *spatial = raw["image"].shape
        size = self.prepare.size if len(spatial) == 2 else None
        return (self.prepare.channels or channels, *(size or spatial))

    def indices(self, stored: np.ndarray) -> np.ndarray:
        """Class index of every pixel of a stored mask."""
        if self.values is None:
            return (stored > 0).astype(np.uint8)
        out = np.zeros(stored.shape, np.uint8)
        for value, index in self.values:
            out[stored == value] = index
        return out


class Picture(Reader):
    """A picture file, and a picture file as its mask."""

    def raw(self) -> Read:
        image = picture(self.image)
        mask = None if self.mask is None else mask_picture(self.mask)
        return {"image": image, "mask": mask, "spacing": self.spacing or (1.0, 1.0), "affine": None}


class Volume(Reader):
    """A NIfTI file, and a NIfTI file as its mask; oriented and resampled by MONAI, ready volumes kept in a cache."""

    def raw(self) -> Read:
        image, affine, spacing = nifti(self.image)
        out = {"image": image, "mask": None, "spacing": spacing, "affine": affine}
        if self.mask is not None:
            mask, out["mask_affine"], _ = nifti(self.mask)
            out["mask"] = mask[0]
        return out

    def __call__(self) -> Read:
        if self in _ready:
            _ready.move_to_end(self)
        else:
            _ready[self] = self._read()
            while len(_ready) > 1 and sum(_size(read) for read in _ready.values()) > CACHE:
                _ready.popitem(last=False)
        return dict(_ready[self])

    def _read(self) -> Read:
        raw = self.raw()
        image, affine = self.regridded(raw["image"], raw["affine"])
        out = {
            "image": self.prepare.image(image),
            "spacing": tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)),
            "affine": affine,
        }
        if raw["mask"] is not None:
            mask = self.indices(raw["mask"])[None].astype(np.float32)
            out["mask"] = self.prepare.mask(self.regridded(mask, raw["affine"], nearest=True)[0][0])
        return out

    def shape(self, raw: Read) -> tuple[int, ...]:
        image = self.regridded(raw["image"], raw["affine"])[0]
        return (self.prepare.channels or len(image), *image.shape[1:])

    def regridded(self, array: np.ndarray, affine: np.ndarray, *, nearest: bool = False):
        """(array, affine) in the orientation and spacing that `prepare` asks for."""
        from monai.data import MetaTensor
        from monai.transforms import Orientation, Spacing

        if self.prepare.orientation is None and self.prepare.spacing is None:
            return array, affine
        out = MetaTensor(np.ascontiguousarray(array, np.float32), affine=affine)
        if self.prepare.orientation is not None:
            out = Orientation(axcodes=self.prepare.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))(out)
        if self.prepare.spacing is not None:
            out = Spacing(pixdim=self.prepare.spacing, mode="nearest" if nearest else "bilinear")(out)
        return out.numpy(), np.asarray(out.affine, float)


_ready: OrderedDict[Volume, Read] = OrderedDict()


def _size(read: Read) -> int:
    return sum(value.nbytes for value in read.values() if isinstance(value, np.ndarray))


@dataclass(frozen=True)
class Rows(Reader):
    """One image of an array of many: `image` is the npz file, `key` and `row` say which, `mask` is the masks' key.

    objects   masks number objects; all of them are class 1
    """

    key: str = "images"
    row: int = 0
    objects: bool = False

    def raw(self) -> Read:
        image = stored(self.image, self.key)[self.row]
        image = np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]
        mask = None if self.mask is None else stored(self.image, self.mask)[self.row]
        if self.objects and mask is not None:
            mask = (mask > 0).astype(np.uint8)
        return {"image": image, "mask": mask, "spacing": self.spacing or (1.0, 1.0), "affine": None}


@lru_cache(maxsize=8)
def stored(file: str, key: str) -> np.ndarray:
    """An array of an npz file; a pickled one is refused."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[key]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(file, f"array `{key}` not readable: {str(error)[:120]}", "an npz file of arrays") from None


def picture(file: str) -> np.ndarray:
    """(channels, height, width) as stored: 1 or 3 channels (transparency dropped), 8 or 16 bit."""
    with opened(file) as image:
        if image.mode not in ("L", "I;16", "I;16B", "I", "F", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
        array = np.asarray(image)
    if array.dtype == np.int32:  # pillow's 16-bit PNG of old
        array = array.astype(np.uint16)
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]


def mask_picture(file: str) -> np.ndarray:
    """(height, width) values of a mask: grey levels, a palette's indices, or one channel of grey saved in colour."""
    with opened(file) as image:
        array = np.asarray(image)
    if array.ndim == 3:
        if not (array[..., :3] == array[..., :1]).all():
            raise DataError(file, "a colour picture as mask", "one value per pixel", "save the mask as grey levels")
        array = array[..., 0]
    return array.astype(np.int64)


def opened(file: str):
    """The picture, fully decoded. DataError: missing, no picture, cut off."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
        image.load()
        return image
    except FileNotFoundError:
        raise DataError(file, "no such file", "a picture") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(file, f"not a readable picture: {str(error)[:120]}", ", ".join(PICTURES)) from None


def nifti(file: str) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """((channels, x, y, z) float32, (4, 4) affine, spacing in mm). DataError: missing, damaged, no spacing."""
    import nibabel

    try:
        spacing = _pixdim(file)
        image = nibabel.load(file)
        array, affine = np.asarray(image.dataobj, np.float32), np.asarray(image.affine, float)
    except FileNotFoundError:
        raise DataError(file, "no such file", "a NIfTI file") from None
    except DataError:
        raise
    except Exception as error:  # nibabel, gzip and struct raise many types for a damaged file
        raise DataError(file, f"not a readable NIfTI file: {str(error)[:120]}", ", ".join(VOLUMES)) from None
    if array.ndim not in (3, 4):
        raise DataError(file, f"{array.ndim} dimensions", "3, or 4 with channels last")
    if spacing is None:
        spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return (np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]), affine, spacing


def _pixdim(file: str) -> tuple[float, ...] | None:
    """Spacing in mm where the header has no affine of its own, else None. Read before nibabel does, which writes 1 mm
    for what is missing. DataError: the header has neither."""
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.openers import ImageOpener

    with ImageOpener(file) as opened_file:
        content = opened_file.read(540)
    kind, size = (Nifti2Header, 540) if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else (Nifti1Header, 348)
    header = kind(content[:size], check=False)
    if int(header["sform_code"]) > 0:
        return None
    spacing = tuple(float(s) for s in header["pixdim"][1:4])
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        got = f"no spacing (pixdim {', '.join(f'{s:g}' for s in spacing)}, no affine)"
        raise DataError(file, got, "mm per voxel, above 0", "write it into the header: distances need it")
    return spacing


def suffix(name: str) -> str:
    """.nii.gz as one suffix, lower case."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else Path(lower).suffix


def reader(file: str) -> type[Picture] | type[Volume]:
    """The reader for a file's suffix."""
    return Volume if suffix(file) in VOLUMES else Picture
