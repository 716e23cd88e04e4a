"""Scores against closed forms, and against MONAI where it is defined; the empty masks by our rule."""

import numpy as np
import pytest
import torch

from core.errors import DataError
from domains.vision_medical import masks, metrics
from domains.vision_medical.metrics import Overlap

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # of MONAI inside MONAI
    pytest.mark.filterwarnings("ignore:the .* of class 1 is all 0:UserWarning"),
]


def cube(shape, *corner, size=6):
    out = np.zeros(shape, bool)
    out[tuple(slice(c, c + size) for c in corner)] = True
    return out


def blob(seed, shape=(20, 22)):
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return noise > np.quantile(noise, 0.7)


# truth, prediction -> state, Dice, IoU; a square of 6 x 6 in an image of 16 x 12 pixels of (2, 3) mm
SQUARE, EMPTY = cube((16, 12), 2, 3), np.zeros((16, 12), bool)
CASES = {
    "overlap": (SQUARE, cube((16, 12), 4, 3), ("scored", 2 / 3, 0.5)),
    "missed": (SQUARE, EMPTY, ("missed", 0.0, 0.0)),
    "extra": (EMPTY, SQUARE, ("fp", 0.0, 0.0)),
    "both empty": (EMPTY, EMPTY, ("empty", None, None)),
}


@pytest.mark.parametrize("case", CASES)
def test_four_cases(case):
    """One mask empty: the worst of everything, HD95 the image's diagonal. Both: no score. MONAI drops what we count."""
    truth, found, (state, dice, iou) = CASES[case]
    overlap = metrics.overlap(truth, found)
    assert (overlap.state, overlap.dice, overlap.iou) == (state, pytest.approx(dice), pytest.approx(iou))
    hd95, nsd = metrics.surfaces(truth, found, (2.0, 3.0), 1.0)
    if case == "both empty":
        assert hd95 is None and nsd is None
    elif case != "overlap":
        assert (hd95, nsd) == (pytest.approx(np.hypot(32, 36)), 0.0)
        from monai.metrics import compute_hausdorff_distance

        pair = [torch.from_numpy(np.stack([~m, m]))[None].float() for m in (found, truth)]
        theirs = compute_hausdorff_distance(*pair, percentile=95, include_background=False)
        assert not torch.isfinite(theirs).any()  # the trap: a mean over finite values is better with every miss


@pytest.mark.parametrize("spacing, axis, distance", [((3.0, 1.0, 1.0), 0, 3.0), ((3.0, 1.0, 1.0), 2, 1.0)])
def test_a_shifted_cube_is_as_far_as_its_spacing_says(spacing, axis, distance):
    """A cube of 9 voxels' edge moved by one: two faces of six are one step away, no surface voxel more."""
    corner = [4, 4, 4]
    truth = cube((18, 18, 18), *corner, size=9)
    corner[axis] += 1
    found = cube((18, 18, 18), *corner, size=9)
    hd95, nsd = metrics.surfaces(truth, found, spacing, 0.0)
    assert hd95 == distance
    surface = 9**3 - 7**3
    shared = surface - 81 - 49  # the face left behind, and the inside of the next layer, are not the other's surface
    assert nsd == pytest.approx(shared / surface)
    assert metrics.surfaces(truth, found, spacing, distance)[1] == 1.0
    assert metrics.surfaces(truth, truth, spacing, 0.0) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_surfaces_agree_with_monai(seed):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    truth, found, spacing = blob(seed), blob(seed + 10), (0.7, 1.9)
    pair = [torch.from_numpy(np.stack([~m, m]))[None].float() for m in (found, truth)]
    hd95, nsd = metrics.surfaces(truth, found, spacing, 2.0)
    theirs = compute_hausdorff_distance(*pair, percentile=95, include_background=False, spacing=spacing)
    assert hd95 == pytest.approx(theirs.item(), rel=1e-5)
    theirs = compute_surface_dice(*pair, [2.0], include_background=False, spacing=spacing)
    assert nsd == pytest.approx(theirs.item(), rel=1e-5)
    assert metrics.overlap(truth, found).dice == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))


def test_calibration_of_a_simulator():
    """Outcomes drawn from the probabilities are calibrated but for chance; pushed to the ends they are not."""
    rng = np.random.default_rng(0)
    p = rng.uniform(size=40_000)
    outcome = rng.uniform(size=p.size) < p
    assert metrics.calibration(outcome, p) < 0.01  # chance alone gives about 0.006
    pushed = p**3 / (p**3 + (1 - p) ** 3)
    bins = np.array_split(np.sort(p), 15)
    expected = np.mean([abs((b**3 / (b**3 + (1 - b) ** 3)).mean() - b.mean()) for b in bins])
    assert metrics.calibration(outcome, pushed) == pytest.approx(expected, abs=0.01) and expected > 0.1
    assert metrics.calibration([1, 0], [1.0, 1.0], bins=1) == 0.5


def test_brier_closed_form():
    assert metrics.brier([1, 0], [[0.2, 0.8], [0.5, 0.5]]) == pytest.approx((0.04 + 0.25) / 2)
    assert metrics.brier([2], [[0.2, 0.3, 0.5]]) == pytest.approx(0.04 + 0.09 + 0.25)


def test_masks_as_text():
    assert masks.encode(np.array([[0, 0, 1], [1, 1, 0]])) == {"shape": [2, 3], "runs": [0, 2, 1, 3, 0, 1]}
    rng = np.random.default_rng(0)
    for shape in ((1,), (7, 5), (4, 3, 6), (0, 3)):
        mask = rng.integers(0, 3, shape)
        assert np.array_equal(masks.decode(masks.encode(mask)), mask)
    with pytest.raises(DataError, match="5 voxels"):
        masks.decode({"shape": [2, 3], "runs": [0, 5]})


def test_states_of_an_overlap():
    assert [Overlap(*c).state for c in ((3, 2, 0), (3, 0, 0), (0, 2, 0), (0, 0, 0))] == [
        "scored",
        "missed",
        "fp",
        "empty",
    ]
