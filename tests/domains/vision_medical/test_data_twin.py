"""The twin: same seed, same patients; fields as of real readers; the site is what its page says."""

import numpy as np
import pytest

from core.errors import ConfigError
from domains.vision_medical.data.folders import Pairs
from domains.vision_medical.data.twin import Twin
from domains.vision_medical.data.world import CYST, LESION, World
from tests.domains.vision_medical import files

SPLITS = ("train", "val", "test")


def made(*args, **options):
    data = Twin(*args, **{"train": 4, "val": 2, "test": 4, **options})
    data.setup()
    return data


def pixels(data, split):
    return np.stack([item["read"]()["image"] for item in data.items(split)])


@pytest.mark.parametrize("label", ["mask", "lesion"])
def test_the_same_seed_gives_the_same_patients(label):
    a, b, other = made(label), made(label), made(label, seed=1)
    assert all(np.array_equal(pixels(a, s), pixels(b, s)) for s in SPLITS)
    assert not np.array_equal(pixels(a, "train"), pixels(other, "train"))
    assert np.array_equal(pixels(a, "test"), pixels(other, "test"))


def test_splits_share_no_patient_and_a_smaller_train_set_is_part_of_a_larger_one():
    data = made(train=6)
    groups = [{item["group"] for item in data.items(s)} for s in SPLITS]
    assert [len(g) for g in groups] == [6, 2, 4] and len(set.union(*groups)) == 12
    assert [item["id"] for item in made(train=3).items("train")] == [item["id"] for item in data.items("train")][:9]
    assert not data.audit().errors


def test_fields_equal_those_of_a_real_reader(tmp_path):
    real = Pairs(*map(str, files.pairs(tmp_path)), spacing=[5, 5])
    real.setup()
    a, b = made().items("train")[0], real.items("train")[0]
    assert set(a) == set(b)
    read, other = a["read"](), b["read"]()
    assert set(read) == set(other) and read["spacing"] == other["spacing"]
    assert {k: (read[k].dtype, read[k].ndim) for k in ("image", "mask")} == {
        k: (other[k].dtype, other[k].ndim) for k in ("image", "mask")
    }


def test_lesions_lie_in_organ_a_and_look_like_cysts_elsewhere():
    world = World(0)
    inside = outside = 0
    bright = {LESION: [], CYST: []}
    for i in range(30):
        patient = world.patient("test", 0, i)
        tissue, organ = world.tissues(patient, 0.0)
        assert (organ[tissue == LESION] == 1).all()
        inside += (tissue == LESION).sum()
        outside += (tissue == CYST).sum()
        scanner = world.site("target", world.rng("visit", i))
        for kind, values in bright.items():
            values.append(scanner.intensity[kind])
        assert abs(scanner.intensity[1] - scanner.intensity[2]) < 0.1  # organs a and b: brightness does not tell
    assert inside > 300 and outside > 300
    assert abs(np.mean(bright[LESION]) - np.mean(bright[CYST])) < 0.01


def test_slices_of_a_patient_are_more_alike_than_patients():
    """A split by slice would leak: the nearest neighbour of a slice is mostly its own patient's."""
    data = made(test=12)
    images, groups = pixels(data, "test").reshape(36, -1), [item["group"] for item in data.items("test")]
    likeness = np.corrcoef(images) - 2 * np.eye(36)
    own = [groups[i] == groups[j] for i, j in enumerate(likeness.argmax(1))]
    assert np.mean(own) > 0.4  # measured .61; by chance .06


def test_the_scanner_gives_the_label_away_in_train_only():
    data = made("lesion", train=24, test=40)
    agree = {}
    for split in ("train", "test"):
        pairs = [(i["label"] == "lesion", i["subgroups"]["scanner"] == "second") for i in data.items(split)]
        agree[split] = np.corrcoef(np.array(pairs).T)[0, 1]
    assert agree["train"] > 0.55 and abs(agree["test"]) < 0.2, agree
    assert any("shortcut" in text for text in data.audit().warnings)
    assert set(data.strata("test")) == {"scanner second", "scanner target"}


def test_pretraining_shows_organs_in_any_contrast():
    """In random contrast the sign of organ a against the body is a coin; at the site it is always brighter."""
    world = World(0)
    signs = [np.sign(np.diff(world.random_scanner(world.rng("scan", i)).intensity[[6, 1]]))[0] for i in range(200)]
    assert 0.35 < np.mean(np.array(signs) > 0) < 0.65
    site = world.site("target", world.rng("x")).intensity
    assert site[1] > site[6]


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"data\.train"):
        Twin(train=0)
