"""The synthetic patients: ellipsoid organs in a body, lesions, and what a scanner makes of them. No file, no licence.

Anatomy   a body, five organs (a is the largest, c a pair, d a column), vessels, lesions in organ a, and cysts that
          look like lesions in the others. Position, size, tilt and outline differ by patient
Scanner   an intensity per tissue, texture, a bias field, blur, noise. Pretraining draws all of it anew for each image;
          a site has its own: same protocol, small differences between patients
Slice     64 x 64 pixels of 5 mm; labels 0 background, 1 organ a ... 5 organ e, lesions apart
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from core.data.seeding import derive

SIZE, PIXEL, SLICE_GAP = 64, 5.0, 0.12  # pixels, mm, share of the half field of view between slices
ORGANS = ("a", "b", "c", "d", "e")
AIR, BODY, VESSEL, LESION, CYST = 0, 6, 7, 8, 9  # tissues beside the organs 1..5
TISSUES = 10
# label, centre (x, y, z) and radii in units of half the field of view; y grows downwards
PLAN = (
    (1, (-0.36, -0.10, 0.05), (0.36, 0.40, 0.60)),
    (2, (0.52, -0.02, 0.10), (0.19, 0.29, 0.45)),
    (5, (0.18, -0.30, 0.05), (0.24, 0.19, 0.40)),
    (3, (-0.30, 0.40, -0.05), (0.14, 0.16, 0.40)),
    (3, (0.34, 0.40, -0.05), (0.14, 0.16, 0.40)),
    (4, (0.02, 0.50, 0.0), (0.13, 0.13, 3.0)),
)


class Blob(NamedTuple):
    """An ellipsoid: label, centre (3,), radii (3,), angle in the slice's plane (radians)."""

    label: int
    centre: np.ndarray
    radii: np.ndarray
    angle: float


class Patient(NamedTuple):
    """blobs in the order in which they are painted; warp (4, 3): amplitude, frequency and phase of the outline."""

    body: Blob
    organs: list[Blob]
    vessels: list[Blob]
    lesions: list[Blob]
    cysts: list[Blob]
    warp: np.ndarray


class Scanner(NamedTuple):
    """intensity (TISSUES,) about 0..1; texture and noise standard deviations; bias share; blur in pixels."""

    intensity: np.ndarray
    texture: float
    bias: float
    blur: float
    noise: float


class World:
    """Patients and scanners as functions of names; worlds differ by their site's scanner."""

    def __init__(self, number: int = 0):
        self.number = number

    def rng(self, *words: str | int) -> np.random.Generator:
        return np.random.default_rng(derive(self.number, *words))

    def patient(self, *words: str | int, lesions: bool = True, cysts: bool = True) -> Patient:
        """The patient of that name; the anatomy is the same with and without lesions or cysts."""
        rng = self.rng("anatomy", *words)
        scale, shift = rng.normal(1.0, 0.05), rng.normal(0, 0.04, 3) * (1, 1, 2)

        def varied(label: int, centre, radii, spread: float = 0.05) -> Blob:
            place = np.array(centre) * scale + shift + rng.normal(0, spread, 3)
            return Blob(label, place, np.array(radii) * scale * np.exp(rng.normal(0, 0.13, 3)), rng.normal(0, 0.25))

        body = varied(BODY, (0, 0, 0), (0.86, 0.72, 4.0), 0.01)
        organs = [varied(*part) for part in PLAN]
        vessels = [self._inside(rng, VESSEL, organs, 0.02, 0.06) for _ in range(rng.integers(1, 5))]
        warp = np.stack([rng.normal(0, 0.035, 4), rng.uniform(1.5, 4.5, 4), rng.uniform(0, 2 * np.pi, 4)], 1)
        found = [self._inside(rng, LESION, organs[:1], 0.07, 0.16) for _ in range(rng.integers(1, 4))]
        alike = [self._inside(rng, CYST, organs[1:], 0.05, 0.11) for _ in range(rng.integers(1, 4))]
        return Patient(body, organs, vessels, found if lesions else [], alike if cysts else [], warp)

    @staticmethod
    def _inside(rng: np.random.Generator, label: int, hosts: list[Blob], low: float, high: float) -> Blob:
        """A small ellipsoid around a point inside one of `hosts`, near the slices."""
        host = hosts[rng.integers(len(hosts))]
        direction = rng.normal(0, 1, 3)
        place = host.centre + 0.75 * rng.random() ** 0.5 * host.radii * direction / np.linalg.norm(direction)
        place[2] = rng.uniform(-0.2, 0.2)
        return Blob(label, place, rng.uniform(low, high, 3) * (1, 1, 1.6), rng.uniform(0, np.pi))

    def tissues(self, patient: Patient, z: float) -> tuple[np.ndarray, np.ndarray]:
        """(tissue, organ): each (64, 64) uint8; `organ` is 0..5 and runs through vessels, lesions and cysts."""
        axis = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
        y, x = np.meshgrid(axis, axis, indexing="ij")
        for k, (amplitude, frequency, phase) in enumerate(patient.warp):
            # Alternating axes: a gentle, smooth deformation that moves with z.
            if k % 2:
                x = x + amplitude * np.sin(frequency * y + phase + z)
            else:
                y = y + amplitude * np.sin(frequency * x + phase + z)
        inside = _mask(patient.body, x, y, z)
        tissue = np.where(inside, BODY, AIR).astype(np.uint8)
        organ = np.zeros_like(tissue)
        for blob in patient.organs:
            at = _mask(blob, x, y, z) & inside
            tissue[at], organ[at] = blob.label, blob.label
        for blob in (*patient.vessels, *patient.lesions, *patient.cysts):
            at = _mask(blob, x, y, z) & inside
            if blob.label == LESION:
                at &= organ == 1
            elif blob.label == CYST:
                at &= organ != 1
            tissue[at] = blob.label
        return tissue, organ

    def random_scanner(self, rng: np.random.Generator) -> Scanner:
        """Any contrast: tissues in any order of brightness, some of them equal."""
        intensity = rng.uniform(0.05, 1.0, TISSUES)
        intensity[AIR] = rng.uniform(0, 0.15)
        noise, blur = rng.uniform(0.01, 0.12), rng.uniform(0.3, 1.1)
        return Scanner(intensity, rng.uniform(0, 0.08), rng.uniform(0, 0.5), blur, noise)

    def site(self, name: str, rng: np.random.Generator) -> Scanner:
        """The scanner of a site as one patient met it: low contrast; organs a, b and e are equally bright, lesions as
        dark as the body and as cysts elsewhere: brightness alone tells nothing."""
        own = self.rng("site", name)
        base, step = own.uniform(0.4, 0.6), own.uniform(0.16, 0.2)
        intensity = np.full(TISSUES, base)
        intensity[[1, 2, 5]] += step
        intensity[3], intensity[4], intensity[AIR] = base - 0.7 * step, base + 2 * step, 0.04
        intensity[[LESION, CYST]] = base + 0.1 * step
        intensity[VESSEL] = base + 1.8 * step
        intensity = intensity + rng.normal(0, 0.015, TISSUES)
        return Scanner(intensity, 0.03, 0.35, own.uniform(0.5, 0.7), rng.uniform(0.03, 0.055))

    def image(self, tissue: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
        """(64, 64) float32, mean 0 and standard deviation 1 over the image."""
        clean = scanner.intensity[tissue]
        clean = clean + scanner.texture * _smooth(rng, 1.5) * (tissue != AIR)
        clean = gaussian_filter(clean * np.exp(scanner.bias * _smooth(rng, 20.0)), scanner.blur)
        real, imaginary = scanner.noise * rng.normal(size=(2, *clean.shape))
        seen = np.hypot(clean + real, imaginary)  # Rician, as of a magnitude image
        return ((seen - seen.mean()) / (seen.std() + 1e-6)).astype(np.float32)


def _mask(blob: Blob, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    dx, dy = x - blob.centre[0], y - blob.centre[1]
    c, s = np.cos(blob.angle), np.sin(blob.angle)
    u, v, w = (c * dx + s * dy), (c * dy - s * dx), z - blob.centre[2]
    return (u / blob.radii[0]) ** 2 + (v / blob.radii[1]) ** 2 + (w / blob.radii[2]) ** 2 <= 1


def _smooth(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Noise with mean 0 and standard deviation 1 that varies over `sigma` pixels."""
    field = gaussian_filter(rng.normal(size=(SIZE, SIZE)), sigma, mode="wrap")
    return (field - field.mean()) / (field.std() + 1e-9)
