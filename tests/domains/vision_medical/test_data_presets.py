"""Every data preset fits its constructor; the real sets have the rows that their sources state."""

import importlib.util

import pytest

from core import catalog, config, paths
from core.compose import compose
from core.errors import DataError, EnvironmentError_
from core.training.assemble import make

REAL = {
    "pneumonia": (3493, 524, 389),
    "nuclei_fluor": (342, 45, 63),
    "nuclei_stained": (63, 13, 11),
}
OWN_PACKAGE = "mni152"


def problems(*overrides):
    return config.find(config.plain(compose("vision_medical", overrides)))


@pytest.mark.parametrize("name", catalog.groups("vision_medical")["data"])
def test_a_preset_fits_its_constructor(name):
    """Presets of your own data ask for their files and for nothing else."""
    asked = [problem.where for problem in problems(f"data={name}")]
    assert set(asked) <= {"data.path", "data.images", "data.masks"}
    assert (name in (*REAL, OWN_PACKAGE) or name.startswith("twin")) == (asked == [])
    assert problems(f"data={name}", *(f"{key}=a" for key in asked)) == []


@pytest.mark.skipif(paths.data_dir() is None, reason="the real data folder (PEFT_ATLAS_DATA) is not here")
@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_their_rows(name):
    data = make(compose("vision_medical", [f"data={name}"]), "data", 0)
    data.setup()
    assert tuple(len(data.items(split)) for split in ("train", "val", "test")) == REAL[name]


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_without_its_folder_says_what_to_set(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_ATLAS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="export PEFT_ATLAS_DATA="):
        make(compose("vision_medical", [f"data={name}"]), "data", 0).setup()


@pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="nilearn is not installed")
def test_the_average_head_is_split_from_front_to_back():
    data = make(compose("vision_medical", ["data=mni152", "data.spacing=4", "data.patch=16"]), "data", 0)
    data.setup()
    reach = {}
    for split in ("train", "val", "test"):
        affines = [data.load(item)["affine"] for item in data.items(split)]
        reach[split] = (min(a[1, 3] for a in affines), max(a[1, 3] for a in affines) + 16 * 4)
        assert len(affines) >= 4
    assert (
        reach["test"][1] <= reach["val"][0] + 4 and reach["val"][1] <= reach["train"][0] + 4
    )  # no voxel in two splits
    read = data.load(data.items("test")[0])
    assert read["image"].shape == (1, 16, 16, 16) and set(read["mask"].ravel()) <= {0, 1, 2}
    assert any("no claim" in text for text in data.audit().warnings)


def test_without_its_package_the_average_head_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    data = make(compose("vision_medical", ["data=mni152", "data.spacing=3.5"]), "data", 0)
    with pytest.raises(EnvironmentError_, match="nilearn") as caught:
        data.setup()
    assert caught.value.code == 6
