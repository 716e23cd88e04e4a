"""Files as people have them: what is read, what becomes of the numbers, what the network gets."""

import pickle

import nibabel
import numpy as np
import pytest
from PIL import Image

from domains.vision_medical.data.arrays import Npz
from domains.vision_medical.data.augment import Augment, Augmented
from domains.vision_medical.data.folders import ImageFolder, Pairs
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.reading import Picture, Volume, picture
from domains.vision_medical.data.table import Csv
from tests.domains.vision_medical import files

SPLITS = ("train", "val", "test")


def ready(data):
    data.setup()
    return {split: data.items(split) for split in SPLITS}


def every(found):
    return [item for part in found.values() for item in part]


# ------------------------------------------------------------------ pictures


def test_a_folder_per_class_is_split_by_patient(tmp_path):
    data = ImageFolder(str(files.class_folder(tmp_path)), patient=r"(P\d+)_", val=0.2, test=0.2)
    found = ready(data)
    assert {item["label"] for item in every(found)} == {"a", "b"} and len(every(found)) == 24
    groups = [{item["group"] for item in found[split]} for split in SPLITS]
    assert all(groups) and sum(map(len, groups)) == len(set.union(*groups)) == 12
    assert all(n == 2 for n in np.unique([item["group"] for item in every(found)], return_counts=True)[1])


def test_without_a_pattern_every_image_counts_as_a_patient_and_the_audit_says_so(tmp_path):
    data = ImageFolder(str(files.class_folder(tmp_path)))
    ready(data)
    assert any("data.patient" in text for text in data.audit().warnings)


def test_given_folders_keep_their_split(tmp_path):
    for i, split in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 2):
        files.picture(tmp_path / split / "ab"[i % 2] / f"{i}.png", files.noise(i))
    found = ready(ImageFolder(str(tmp_path), split="given"))
    assert {split: len(part) for split, part in found.items()} == {"train": 4, "val": 2, "test": 2}


@pytest.mark.parametrize(
    "mode, expected", [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("LA", 1), ("1", 1), ("I;16", 1)]
)
def test_every_picture_mode_has_one_or_three_channels(tmp_path, mode, expected):
    array = files.noise(0)
    made = Image.fromarray(array.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(array).convert(mode)
    made.save(tmp_path / "x.png")
    read = picture(str(tmp_path / "x.png"))
    assert read.shape == (expected, 24, 24)
    if mode == "I;16":
        assert read.dtype == np.uint16 and np.array_equal(read[0], array.astype(np.uint16) * 200)
    if mode == "RGB":
        assert np.array_equal(read, np.repeat(array[None], 3, 0))


def test_grey_values_are_prepared_as_asked():
    raw = np.array([[[0, 51], [102, 255]]], np.uint8)
    np.testing.assert_allclose(Prepare().image(raw), raw / 255, atol=1e-7)
    z = Prepare(intensity="zscore", channels=3).image(raw)
    assert z.shape == (3, 2, 2) and abs(z.mean()) < 1e-6 and z.std() == pytest.approx(1, abs=1e-6)
    f = Prepare(intensity="foreground").image(raw)[0]
    assert f[0, 0] == 0 and f[f != 0].mean() == pytest.approx(0, abs=1e-6)
    ct = np.array([[[-1000, -160], [40, 3000]]], np.int16)
    np.testing.assert_allclose(Prepare(intensity="asis", window=[-160, 240]).image(ct)[0], [[0, 0], [0.5, 1]])
    assert Prepare(intensity="asis").image(ct).dtype == np.float32


def test_a_csv_gives_labels_patients_subgroups_and_splits(tmp_path):
    lines = ["path,label,patient_id,sex,split"]
    for i, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 8):
        files.picture(tmp_path / "img" / f"{i}.jpg", files.noise(i))
        lines.append(f"img/{i}.jpg,{'ab'[i % 2]},p{i},{'fm'[i // 2 % 2]},{split}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = Csv(str(tmp_path / "t.csv"), subgroups=["sex"], split="given")
    found = ready(data)
    assert [item["id"] for item in found["val"]] == [f"img/{i}" for i in range(8, 12)]
    assert found["train"][2]["group"] == "p2" and found["train"][2]["subgroups"] == {"sex": "m"}
    assert {name: len(ids) for name, ids in data.strata("test").items()} == {"sex f": 4, "sex m": 4}


def test_image_and_mask_are_matched_by_name_and_resized_alike(tmp_path):
    images, masks = files.pairs(tmp_path, value=255)
    data = Pairs(str(images), str(masks), spacing=[0.5, 0.5], prepare=Prepare(size=[48, 48], intensity="zscore"))
    item = ready(data)["train"][0]
    read = item["read"]()
    assert data.classes == ["background", "foreground"] and item["shape"] == (48, 48)
    assert (
        read["image"].shape == (1, 48, 48) and read["mask"].shape == (48, 48) and set(np.unique(read["mask"])) == {0, 1}
    )
    assert read["spacing"] == item["spacing"] == (0.25, 0.25)
    bright, dark = read["image"][0][read["mask"] == 1].mean(), read["image"][0][read["mask"] == 0].mean()
    assert bright > dark + 0.5  # the mask lies on its own image


def test_classes_follow_the_named_values(tmp_path):
    for i in range(10):
        mask = files.disc(i, value=40)
        mask[:4, :4] = 7
        files.picture(tmp_path / "images" / f"{i}.png", files.noise(i))
        files.picture(tmp_path / "masks" / f"{i}.png", mask)
    data = Pairs(str(tmp_path / "images"), str(tmp_path / "masks"), classes={"big": 40, "corner": 7})
    read = ready(data)["train"][0]["read"]()
    assert data.classes == ["background", "big", "corner"] and (read["mask"][:4, :4] == 2).all()


def test_an_item_is_small_and_picklable(tmp_path):
    images, masks = files.pairs(tmp_path)
    data = Pairs(str(images), str(masks), augment=Augment(flips=[0, 1], noise=0.1))
    for item in every(ready(data)):
        text = pickle.dumps(item)
        assert len(text) < 2000
        assert pickle.loads(text)["read"]()["image"].shape == (1, 24, 24)


# ------------------------------------------------------------------ volumes


def test_volumes_keep_their_spacing_and_affine(tmp_path):
    scans, labels = files.volumes(tmp_path)
    item = ready(Pairs(str(scans), str(labels), prepare=Prepare(intensity="asis"), val=0.2, test=0.2))["test"][0]
    read, source = item["read"](), nibabel.load(item["image"])
    np.testing.assert_allclose(read["affine"], source.affine)
    np.testing.assert_array_equal(read["image"][0], np.asarray(source.dataobj, np.float32))
    assert read["spacing"] == pytest.approx((1, 1, 3)) and read["mask"].shape == (12, 10, 8)


def test_orientation_and_spacing_bring_volumes_to_one_grid(tmp_path):
    """A volume stored with a flipped, permuted grid and 3 mm slices becomes the plain one: image, mask and affine."""
    plain = np.zeros((12, 10, 8), np.float32)
    plain[3:6, 2:5, 4:7] = 100
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(plain, affine))
    transform = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt("PSL")
    )
    other = turned.as_reoriented(transform)
    assert other.shape != plain.shape
    nibabel.save(other, tmp_path / "x.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image((np.asarray(other.dataobj) > 50).astype(np.uint8), other.affine), tmp_path / "m.nii"
    )
    reader = Volume(str(tmp_path / "x.nii.gz"), str(tmp_path / "m.nii"), Prepare(intensity="asis", orientation="RAS"))
    read = reader()
    np.testing.assert_allclose(read["image"][0], plain)
    np.testing.assert_array_equal(read["mask"], plain > 50)
    np.testing.assert_allclose(read["affine"], affine, atol=1e-6)
    assert reader.shape(reader.raw()) == (1, 12, 10, 8)
    fine = Volume(reader.image, reader.mask, Prepare(intensity="asis", orientation="RAS", spacing=[1, 1, 1]))()
    assert fine["spacing"] == pytest.approx((1, 1, 1)) and fine["image"].shape == (1, 12, 10, 15)
    assert fine["mask"].sum() == pytest.approx(2 * read["mask"].sum(), rel=0.35)


# ------------------------------------------------------------------ arrays


def test_arrays_are_read_by_the_names_that_a_preset_gives(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{s}_images": rng.integers(0, 255, (n, 16, 16), np.uint8) for s, n in zip(SPLITS, (8, 4, 4), strict=True)
    }
    arrays |= {f"{s}_labels": np.arange(len(arrays[f"{s}_images"])) % 2 for s in SPLITS}
    np.savez(tmp_path / "set.npz", **arrays)
    found = ready(Npz(str(tmp_path / "set.npz"), labels="{split}_labels", names=["healthy", "ill"]))
    assert [len(found[s]) for s in SPLITS] == [8, 4, 4] and [i["label"] for i in found["val"]] == ["healthy", "ill"] * 2
    np.testing.assert_allclose(found["val"][2]["read"]()["image"][0], arrays["val_images"][2] / 255, atol=1e-6)


def test_instances_of_one_modality_become_one_class(tmp_path):
    instances = np.zeros((6, 16, 16), np.uint8)
    instances[:, 2:5, 2:5], instances[:, 8:12, 8:12] = 70, 200
    np.savez(
        tmp_path / "n.npz", images=np.stack([files.noise(i, (16, 16, 3)) for i in range(6)]), instances=instances,
        kind=np.array(["x", "y"] * 3), part=np.array(["train", "train", "val", "val", "test", "test"]),
    )  # fmt: skip
    options = {"names": ["nucleus"], "instances": True, "split_array": "part", "modality": "kind"}
    data = Npz(str(tmp_path / "n.npz"), "images", masks="instances", where={"kind": "y"}, **options)
    found = ready(data)
    read = found["train"][0]["read"]()
    assert [len(found[s]) for s in SPLITS] == [1, 1, 1] and data.classes == ["background", "nucleus"]
    assert read["image"].shape == (3, 16, 16) and read["mask"].sum() == 25


def test_a_pickled_array_is_refused(tmp_path):
    from core.errors import DataError

    np.savez(tmp_path / "bad.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not readable"):
        ready(Npz(str(tmp_path / "bad.npz"), "images", split="random"))


# ------------------------------------------------------------------ augmentation and limits


def test_augmentation_moves_image_and_mask_alike_and_follows_the_seed(tmp_path):
    from core.data.seeding import guard

    mask = files.disc(3, value=1)
    files.picture(tmp_path / "i.png", mask * 200)
    files.picture(tmp_path / "m.png", mask)
    plain = Picture(str(tmp_path / "i.png"), str(tmp_path / "m.png"))
    read = Augmented(plain, Augment(flips=[0, 1], rotate=20, contrast=0.5, shift=0.1, noise=0.05))
    made = []
    for seed in range(6):
        with guard(seed):
            made.append(read())
        image, moved = made[-1]["image"][0], made[-1]["mask"]
        assert image[moved == 1].mean() > image[moved == 0].mean() + 0.3
    assert any(not np.array_equal(m["mask"], made[0]["mask"]) for m in made)
    with guard(3):
        again = read()
    np.testing.assert_array_equal(again["image"], made[3]["image"])
    assert np.array_equal(read.plain()["mask"], mask)


def test_crops_of_volumes_hold_foreground_more_often_than_chance(tmp_path):
    from core.data.seeding import guard

    mask = np.zeros((1, 40, 40, 40), np.uint8)
    mask[0, 2:5, 2:5, 2:5] = 1
    augment = Augment(patch=[16, 16, 16])
    hits = 0
    for seed in range(40):
        with guard(seed):
            out = augment({"image": mask.astype(np.float32), "mask": mask[0]})
        assert out["image"].shape == (1, 16, 16, 16) and np.array_equal(out["image"][0], out["mask"])
        hits += out["mask"].any()
    assert 15 <= hits < 40
    with guard(0):
        small = augment({"image": np.ones((1, 10, 30, 16), np.float32), "mask": np.ones((10, 30, 16), np.int64)})
    assert small["image"].shape == (1, 16, 16, 16) and small["mask"].sum() == 10 * 16 * 16


def test_limits_draw_whole_patients_and_smaller_draws_lie_in_larger_ones(tmp_path):
    folder = str(files.class_folder(tmp_path))
    drawn = {}
    for n in (4, 8):
        found = ready(ImageFolder(folder, patient=r"(P\d+)_", limit={"train": n}, val=0.2, test=0.2))
        drawn[n] = {item["id"] for item in found["train"]}
        assert len(drawn[n]) == n and len({item["group"] for item in found["train"]}) == n // 2
    assert drawn[4] < drawn[8]
