"""Every data preset fits its constructor; the real sets have the rows that their sources state."""

import pytest

from core import catalog, config, paths
from core.compose import compose
from core.errors import DataError
from core.training.assemble import make

REAL = {
    "her2": (23760, 3417, 3445),
    "gb1": (381, 43, 3348),
    "flip_secondary_structure": (9712, 1080, 178),
    "flip_conservation": (9392, 555, 251),
    "flip_bind": (954, 106, 300),
    "blat": (3673, 538, 502),  # 3,807 / 561 / 521 rows less 176 synonymous ones
}


def problems(*overrides):
    return config.find(config.plain(compose("protein", overrides)))


@pytest.mark.parametrize("name", catalog.groups("protein")["data"])
def test_a_preset_fits_its_constructor(name):
    """Presets of your own data ask for their files, `data.path` first, and for nothing else."""
    asked = [problem.where for problem in problems(f"data={name}")]
    assert set(asked) <= {"data.path", "data.labels", "data.wildtype"}
    assert (name in REAL or name.startswith("twin")) == (asked == [])
    assert problems(f"data={name}", *(f"{key}=a.csv" for key in asked)) == []


@pytest.mark.skipif(paths.data_dir() is None, reason="the real data folder (PEFT_ATLAS_DATA) is not here")
@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_their_rows(name):
    data = make(compose("protein", [f"data={name}"]), "data", 0)
    data.setup()
    assert tuple(len(data.items(split)) for split in ("train", "val", "test")) == REAL[name]
    assert sum(REAL["blat"]) + 176 == 3807 + 561 + 521


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_without_its_folder_says_what_to_set(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_ATLAS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="export PEFT_ATLAS_DATA="):
        make(compose("protein", [f"data={name}"]), "data", 0).setup()
