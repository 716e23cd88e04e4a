"""Small image files as people have them."""

from pathlib import Path

import nibabel
import numpy as np
from PIL import Image


def noise(seed, shape=(24, 24)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def picture(path: Path, array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)
    return path


def volume(path: Path, array, spacing=(1.0, 1.0, 3.0), affine=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0]) if affine is None else affine), path)
    return path


def disc(seed, size=24, value=255):
    y, x = np.mgrid[:size, :size]
    cx, cy = np.random.default_rng(seed).uniform(8, size - 8, 2)
    return np.where((x - cx) ** 2 + (y - cy) ** 2 < 20, value, 0).astype(np.uint8)


def class_folder(root: Path, patients=12) -> Path:
    """Two classes, two images of each patient: `a/P3_0.png`."""
    for p in range(patients):
        for k in range(2):
            picture(root / "ab"[p % 2] / f"P{p}_{k}.png", noise(10 * p + k))
    return root


def pairs(root: Path, count=10, value=255) -> tuple[Path, Path]:
    """images/case3_img.png and masks/case3_mask.png."""
    for i in range(count):
        mask = disc(i, value=value)
        picture(root / "images" / f"case{i}_img.png", (mask // max(1, value) * 60 + noise(i) // 4).astype(np.uint8))
        picture(root / "masks" / f"case{i}_mask.png", mask)
    return root / "images", root / "masks"


def volumes(root: Path, count=6) -> tuple[Path, Path]:
    """scans/c3.nii.gz and labels/c3_seg.nii.gz, 12 x 10 x 8 voxels of 1 x 1 x 3 mm."""
    for i in range(count):
        mask = np.zeros((12, 10, 8), np.uint8)
        mask[2 + i % 3 : 7, 2:6, 3:6] = 1
        scan = (mask * 100 + np.random.default_rng(i).normal(0, 5, mask.shape)).astype(np.float32)
        volume(root / "scans" / f"c{i}.nii.gz", scan)
        volume(root / "labels" / f"c{i}_seg.nii.gz", mask)
    return root / "scans", root / "labels"
