"""New images for a run: what is read, and masks on each image's own grid."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from core.compose import compose
from core.errors import ConfigError, DataError
from core.training.run import run
from domains.vision_medical import predict
from tests.domains.vision_medical import files

TINY = "backbone.options={init_filters: 8, blocks_down: [1, 1], blocks_up: [1]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on volumes stored with another orientation and 3 mm slices, one step long."""
    root = tmp_path_factory.mktemp("nifti")
    scans, labels = files.volumes(root, count=6)
    cfg = compose(
        "vision_medical",
        [
            "data=nifti", f"data.images={scans}", f"data.masks={labels}", "data.classes={liver: 1}",
            "data.prepare.spacing=[1,1,2]", "data.augment.patch=[8,8,8]", "task.window=[8,8,8]", "adapter=none",
            "backbone=segresnet", TINY.replace("}", ", spatial_dims: 3}"),
            "trainer.max_steps=1", "data.val=0.2", "data.test=0.2",
        ],
    )  # fmt: skip
    run(cfg, root / "run")
    return root


def test_a_volume_keeps_its_affine_and_its_grid(trained):
    from core.ship import predict as answer

    affine = np.array([[0, 0, -2.0, 30], [1.5, 0, 0, -9], [0, 1, 0, 4], [0, 0, 0, 1]])
    new = trained / "new"
    files.volume(new / "p" / "x.nii.gz", np.random.default_rng(0).random((14, 9, 11), np.float32), affine=affine)
    files.volume(new / "y.nii", np.random.default_rng(1).random((8, 8, 8), np.float32))
    said = answer(trained / "run", new, trained / "out")
    assert said.startswith("2 masks")
    for name in ("p/x.nii.gz", "y.nii.gz"):
        made = nibabel.load(trained / "out" / name)
        source = nibabel.load(new / name if name.startswith("p") else new / "y.nii")
        assert made.shape == source.shape
        np.testing.assert_array_equal(made.affine, source.affine)
        assert set(np.unique(np.asarray(made.dataobj))) <= {0, 1} and made.get_data_dtype() == np.uint8
    with pytest.raises(ConfigError, match="not empty"):
        answer(trained / "run", new, trained / "out")


def test_masks_come_back_to_the_scan_they_belong_to(tmp_path):
    """A known mask on the network's grid (RAS, 1 mm) lands on the voxels of a turned scan where it belongs."""
    from domains.vision_medical.data.files import read_with
    from domains.vision_medical.data.prepare import Prepare

    affine = np.array([[0, 0, -1.0, 20], [1, 0, 0, -9], [0, 2, 0, 4], [0, 0, 0, 1]])
    scan = np.zeros((10, 8, 12), np.float32)
    scan[2:6, 3:6, 4:9] = 1
    path = files.volume(tmp_path / "x.nii.gz", scan, affine=affine)
    item = {"id": "x", "image": str(path)}
    item["read"] = read_with(path, None, Prepare(intensity="asis", orientation="RAS", spacing=[1, 1, 1]))
    seen = item["read"]()["image"][0] > 0.5
    predict._volume(seen, item, tmp_path / "m.nii.gz")
    made = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(made.affine, nibabel.load(path).affine)
    np.testing.assert_array_equal(np.asarray(made.dataobj), scan)


def test_a_picture_gets_a_mask_of_its_own_size_in_the_values_of_training(tmp_path):
    from types import SimpleNamespace

    from domains.vision_medical.data.files import read_with
    from domains.vision_medical.data.prepare import Prepare

    path = files.picture(tmp_path / "x.png", files.noise(0, (40, 30)))
    item = {"id": "x", "image": str(path), "read": read_with(path, None, Prepare(size=[16, 16]))}
    small = np.zeros((16, 16), np.int64)
    small[4:8, 4:8] = 1
    predict._picture((small * 255).astype(np.uint8), item, tmp_path / "m.png")
    made = np.asarray(Image.open(tmp_path / "m.png"))
    assert made.shape == (40, 30) and set(np.unique(made)) == {0, 255} and made[12:18, 9:13].all()
    cfg = SimpleNamespace(data={"classes": {"a": 40, "b": 7}})
    assert predict.stored_values(cfg.data, 3).tolist() == [0, 40, 7]
    assert predict.stored_values({}, 2).tolist() == [0, 255] and predict.stored_values({}, 3).tolist() == [0, 1, 2]


def test_rows_of_a_classification_and_of_a_csv(tmp_path):
    from core.ship import predict as answer

    folder = files.class_folder(tmp_path / "chest", patients=20)
    cfg = compose(
        "vision_medical",
        [
            "data=image_folder", f"data.path={folder}", "data.patient='(P\\d+)_'", "data.prepare.size=[16,16]",
            "data.prepare.channels=1", "task=classification", "adapter=none", "backbone=segresnet", TINY,
            "trainer.max_steps=1", "data.val=0.2", "data.test=0.2",
        ],
    )  # fmt: skip
    run(cfg, tmp_path / "run")
    (tmp_path / "new.csv").write_text("id,path\none,chest/a/P0_0.png\ntwo,chest/b/P1_0.png\n")
    answer(tmp_path / "run", tmp_path / "new.csv", tmp_path / "new.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["one", "two"] and all(0 <= row["prediction"] <= 1 for row in rows)
    answer(tmp_path / "run", folder / "a", tmp_path / "rows")
    assert (tmp_path / "rows" / "predictions.csv").read_text().count("\n") == 21


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        predict.read(tmp_path / "none.png")
    with pytest.raises(DataError, match="no images"):
        predict.read(tmp_path)
    (tmp_path / "t.csv").write_text("file\nx.png\n")
    with pytest.raises(DataError, match="no column `path`"):
        predict.read(tmp_path / "t.csv")
    files.picture(tmp_path / "x.png", files.noise(0))
    files.picture(tmp_path / "x.jpg", files.noise(0))
    with pytest.raises(DataError, match="`x` again"):
        predict.read(tmp_path)
