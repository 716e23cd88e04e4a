"""Bad input through the command that people type: the class, the exit code, the words; and nothing is written."""

import numpy as np
import pytest

from core.compose import compose
from core.errors import DataError
from core.training import assemble
from domains.vision_medical.data.prepare import Prepare
from tests.domains.vision_medical import files

FOLDER = ["data=image_folder", "task=classification", "data.path={root}", "data.prepare.size=[24,24]"]
PAIRS = ["data=pairs", "data.images={root}/images", "data.masks={root}/masks", "data.prepare.size=[24,24]"]
NIFTI = ["data=nifti", "data.images={root}/scans", "data.masks={root}/labels"]
CSV = ["data=csv", "task=classification", "data.path={root}/t.csv", "data.prepare.size=[24,24]"]


def missing_folder(root):
    files.class_folder(root / "chest")
    return [*FOLDER[:2], f"data.path={root}/cest"], "no such folder", "did you mean `chest`?"


def unreadable_image(root):
    files.class_folder(root)
    (root / "a" / "P0_0.png").write_bytes((root / "a" / "P0_0.png").read_bytes()[:60])
    (root / "b" / "P1_0.png").write_bytes(b"not a picture")
    return FOLDER, "2 problems", "not a readable picture"


def image_outside_classes(root):
    files.class_folder(root)
    files.picture(root / "stray.png", files.noise(0))
    return FOLDER, "in no class folder", "stray.png"


def csv_column_missing(root):
    files.picture(root / "x.png", files.noise(0))
    (root / "t.csv").write_text("path,labels,patient_id\nx.png,a,1\n")
    return CSV, "no column `label` (data.label)", "did you mean `labels`?"


def csv_file_missing(root):
    files.picture(root / "scan1.png", files.noise(0))
    (root / "t.csv").write_text("path,label,patient_id\nscan1.png,a,1\nscan2.png,b,2\nscan1.txt,,3\n")
    return CSV, "t.csv:3, path", "no file scan2.png"


def image_without_mask(root):
    files.pairs(root)
    (root / "masks" / "case4_mask.png").rename(root / "masks" / "cas4_mask.png")
    return PAIRS, "case4_img.png", "did you mean `cas4`?"


def shapes_differ(root):
    files.pairs(root)
    files.picture(root / "masks" / "case3_mask.png", files.disc(0, size=30))
    return PAIRS, "30 x 30 pixels for an image of 24 x 24", "case3_mask.png"


def affines_differ(root):
    files.volumes(root)
    files.volume(root / "labels" / "c2_seg.nii.gz", np.ones((12, 10, 8), np.uint8), spacing=(1.0, 1.0, 2.0))
    return NIFTI, "another affine than its image", "c2_seg.nii.gz"


def value_outside_the_map(root):
    files.pairs(root)
    files.picture(root / "masks" / "case5_mask.png", files.disc(5, value=128))
    return [*PAIRS, "data.classes={nucleus: 255}"], "mask values 128", "255 (nucleus)"


def values_without_a_map(root):
    files.pairs(root)
    files.picture(root / "masks" / "case5_mask.png", files.disc(5, value=128))
    return PAIRS, "mask values 0, 128, 255", "data.classes={name: 128, ...}"


def patient_in_two_given_splits(root):
    for i, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        files.picture(root / split / "ab"[i % 2] / f"P{i % 14}_{i}.png", files.noise(i))
    return [*FOLDER, "data.split=given", "data.patient='(P\\d+)_'"], "2 patients in two splits", "data.drop_leaks=true"


def leak_found_by_the_gate(root):
    for i, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        files.picture(root / split / "ab"[i % 2] / f"{i}.png", files.noise(i % 14))
    return (
        [*FOLDER, "data.split=given"],
        "2 images in two splits (2 in train, 2 in test images)",
        "data.drop_leaks=true",
    )


def spacing_missing(root):
    scans, _ = files.volumes(root)
    raw = (scans / "c1.nii.gz").read_bytes()
    import gzip

    header = bytearray(gzip.decompress(raw))
    header[80:92] = np.zeros(3, np.float32).tobytes()  # pixdim[1..3]
    header[252:256] = bytes(4)  # qform_code, sform_code
    (scans / "c1.nii.gz").write_bytes(gzip.compress(bytes(header)))
    return NIFTI, "no spacing (pixdim 0, 0, 0, no affine)", "distances need it"


def one_class_only(root):
    for i in range(12):
        files.picture(root / "a" / f"{i}.png", files.noise(i))
    return FOLDER, "one class only: a", "at least two classes"


def empty_masks_only(root):
    for i in range(10):
        files.picture(root / "images" / f"{i}.png", files.noise(i))
        files.picture(root / "masks" / f"{i}.png", np.zeros((24, 24), np.uint8))
    return PAIRS, "all train masks are empty", "all test masks are empty"


def the_same_id_twice(root):
    files.picture(root / "x.png", files.noise(0))
    (root / "t.csv").write_text("path,label,patient_id\nx.png,a,1\nx.png,b,2\n")
    return CSV, "`x` again", "t.csv:3"


CASES = [
    missing_folder, unreadable_image, image_outside_classes, csv_column_missing, csv_file_missing, image_without_mask,
    shapes_differ, affines_differ, value_outside_the_map, values_without_a_map, patient_in_two_given_splits,
    leak_found_by_the_gate, spacing_missing, one_class_only, empty_masks_only, the_same_id_twice,
]  # fmt: skip
SMALL = ["backbone=segresnet", "backbone.options={init_filters: 8, blocks_down: [1, 1], blocks_up: [1]}"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_bad_data_is_a_data_error_that_says_where(case, tmp_path):
    overrides, *words = case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    channels = [] if overrides[0] in ("data=pairs", "data=nifti") else ["data.prepare.channels=1"]
    overrides = [text.replace("{root}", str(tmp_path)) for text in overrides]
    cfg = compose("vision_medical", [*overrides, *channels, *SMALL])
    with pytest.raises(DataError) as caught:
        assemble.parts(cfg)
    assert caught.value.code == 3
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_on_bad_data_leaves_no_checkpoint_and_no_adapter(tmp_path):
    from core.training.run import run

    overrides, word, _ = image_without_mask(tmp_path / "in")
    overrides = [text.replace("{root}", str(tmp_path / "in")) for text in overrides]
    with pytest.raises(DataError, match=word):
        run(compose("vision_medical", [*overrides, *SMALL]), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoints").exists() and not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize(
    "options, where",
    [
        ({"channels": 2}, "data.prepare.channels"),
        ({"size": [4, 200]}, "data.prepare.size"),
        ({"window": [200, -100]}, "data.prepare.window"),
        ({"orientation": "RAR"}, "data.prepare.orientation"),
        ({"spacing": [1, 1, 0]}, "data.prepare.spacing"),
    ],
)
def test_options_out_of_range_are_config_errors(options, where):
    from core.errors import ConfigError

    with pytest.raises(ConfigError, match=where):
        Prepare(**options)
