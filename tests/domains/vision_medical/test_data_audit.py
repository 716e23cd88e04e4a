"""The audit finds what was planted, and what is really in the real data."""

import numpy as np
import pytest

from core import paths
from core.errors import DataError
from domains.vision_medical.data.arrays import Npz
from domains.vision_medical.data.folders import ImageFolder, Pairs
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.table import Csv
from tests.domains.vision_medical import files

REAL = pytest.mark.skipif(paths.data_dir() is None, reason="no folder of real data")


def audited(data):
    data.setup()
    return data.audit()


def test_clean_data_has_no_findings(tmp_path):
    images, masks = files.pairs(tmp_path)
    found = audited(Pairs(str(images), str(masks), spacing=[1, 1], patient=r"case(\d+)_"))
    assert not found.errors and not found.warnings
    assert found.facts["patients in two splits"] == 0 and found.facts["spacing, mm (median)"] == [1.0, 1.0]
    assert found.facts["images with foreground"]["counts"] == [7, 1, 2]


def leaky(tmp_path):
    """Eight train, four val, four test images; val 0 is train 0 saved again, test 1 nearly is train 1."""
    for i, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        array = files.noise(100 + i, (48, 48))
        array = files.noise(100, (48, 48)) if i == 8 else array
        if i == 13:
            array = np.clip(files.noise(101, (48, 48)).astype(int) + files.noise(1, (48, 48)) % 3, 0, 255).astype(
                np.uint8
            )
        ending = "bmp" if i == 8 else "png"  # another file, the same pixels
        files.picture(tmp_path / split / "ab"[i % 2] / f"{i}.{ending}", array)
    return {"path": str(tmp_path), "split": "given"}


def test_exact_and_near_duplicates_across_splits(tmp_path):
    found = audited(ImageFolder(**leaky(tmp_path)))
    assert found.errors == [
        "1 image in two splits (1 in train, 1 in val images): train/a/0 (train) = val/a/8 (val); data.drop_leaks=true "
        "leaves them out of train"
    ]
    near = [text for text in found.warnings if "nearly equal" in text]
    assert found.facts["held-out images nearly in train"] == 1 and "test/b/13 and train/b/1" in near[0]


def test_drop_leaks_cures_it_and_counts(tmp_path):
    found = audited(ImageFolder(**leaky(tmp_path), drop_leaks=True))
    assert not found.errors and found.facts["train images"] == 7
    assert found.facts["images in no split, or left out as leaks"] == 1


def test_a_random_split_keeps_equal_pixels_together(tmp_path):
    for i in range(24):
        files.picture(tmp_path / "ab"[i % 2] / f"{i}.png", files.noise(i // 3))
    for seed in range(3):
        assert audited(ImageFolder(str(tmp_path), seed=seed, val=0.2, test=0.2)).facts["images in two splits"] == 0


def test_empty_masks_are_counted_by_split(tmp_path):
    images, masks = files.pairs(tmp_path, count=20)
    for i in range(0, 20, 2):
        files.picture(masks / f"case{i}_mask.png", np.zeros((24, 24), np.uint8))
    found = audited(Pairs(str(images), str(masks)))
    counts = [found.facts[f"{split} empty masks"] for split in ("train", "val", "test")]
    assert sum(counts) == 10 and any(f"{counts[0]} of 14 train masks are empty" in text for text in found.warnings)


def test_spacing_outliers_are_named(tmp_path):
    scans, labels = files.volumes(tmp_path, count=10)
    files.volume(scans / "c4.nii.gz", np.random.default_rng(4).random((12, 10, 8), np.float32), spacing=(1, 1, 9))
    files.volume(labels / "c4_seg.nii.gz", np.ones((12, 10, 8), np.uint8), spacing=(1, 1, 9))
    found = audited(Pairs(str(scans), str(labels)))
    assert any("1 images with a spacing far from the median (c4: 1 x 1 x 9 mm)" in text for text in found.warnings)


def test_a_subgroup_that_tells_the_label_is_a_warning(tmp_path):
    lines = ["path,label,patient_id,scanner"]
    for i in range(40):
        files.picture(tmp_path / f"{i}.png", files.noise(i))
        lines.append(f"{i}.png,{'ab'[i % 2]},p{i},{'AB'[i % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = audited(Csv(str(tmp_path / "t.csv"), subgroups=["scanner"]))
    assert any("scanner tells the label in 100% of the train images" in text for text in found.warnings)
    assert found.facts["train by scanner"]["bins"] == ["A", "B"]


def pneumonia(**options):
    prepare = Prepare(channels=1)
    return Npz("data://vision_medical/pneumoniamnist_imb.npz", labels="{split}_labels", names=["normal", "pneumonia"],
               prepare=prepare, **options)  # fmt: skip


@REAL
@pytest.mark.real
def test_the_leak_that_is_really_in_pneumonia_mnist():
    """8 val images are also in train, as 10 train images; 17 repeats inside train. The gate is shut, and drop_leaks
    opens it: 10 train images fewer, the held-out splits untouched."""
    found = audited(pneumonia())
    assert len(found.errors) == 1 and found.errors[0].startswith(
        "8 images in two splits (10 in train, 8 in val images)"
    )
    assert found.facts["repeated images within splits"] == 17
    data = pneumonia(drop_leaks=True)
    cured = audited(data)
    assert not cured.errors
    assert [len(data.items(split)) for split in ("train", "val", "test")] == [3483, 524, 389]


@REAL
@pytest.mark.real
def test_the_real_nuclei_are_read_by_modality():
    arrays = {"images": "images", "masks": "instances", "split_array": "split", "modality": "modality"}
    data = Npz("data://vision_medical/dsb2018_nuclei_128.npz", names=["nucleus"], instances=True,
               where={"modality": "stained"}, id="image_id", **arrays)  # fmt: skip
    found = audited(data)
    assert [len(data.items(split)) for split in ("train", "val", "test")] == [63, 13, 11]
    assert not found.errors and 0.15 < found.facts["nucleus, share of train pixels"] < 0.3


def test_the_gate_stops_a_run(tmp_path):
    """Through the assembly of a run: the audit's error is a DataError, exit code 3; `run.audit=warn` goes on."""
    from core.compose import compose
    from core.training import assemble

    leaky(tmp_path)
    overrides = ["data=image_folder", "task=classification", f"data.path={tmp_path}", "data.split=given",
                 "data.prepare.channels=1", "data.prepare.size=[32,32]", "backbone=segresnet_mini"]  # fmt: skip
    with pytest.raises(DataError, match="1 image in two splits") as caught:
        assemble.parts(compose("vision_medical", overrides))
    assert caught.value.code == 3
    assert assemble.parts(compose("vision_medical", [*overrides, "run.audit=warn"])).audit.errors
