"""One preset file per method serves every field: each is trained for two steps on each field's embedded backbone and
twin, or refused with a reason and something to use instead."""

import pytest
import torch

from core import catalog
from core.compose import compose
from core.config import check
from core.errors import UnsupportedError

FIELDS = catalog.domains()
PRESETS = sorted(catalog.groups(FIELDS[0])["adapter"])
GIVEN = {"combine": ["adapter.parts=[lora,norm]"]}  # what a preset leaves to the user
LEARNS = {"conv_adapter": "vision_medical", "vpt_deep": "protein", "none": "protein"}  # a head trains; elsewhere text
TINY = ["trainer.max_steps=2", "run.limit=6", "run.test=false", "run.audit=warn", "loader.batch_size=2", "threads=1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_four_fields_are_there():
    assert {"text", "vision_medical", "protein", "speech"} <= set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_serves_the_field(preset, field, tmp_path):
    from core.training.run import run

    cfg = compose(field, [f"adapter={preset}", *GIVEN.get(preset, []), *TINY])
    check(cfg)
    try:
        record = run(cfg, tmp_path)
    except UnsupportedError as refused:
        assert all(problem.got and (problem.allowed or problem.fix) for problem in refused.problems), refused
        return
    assert record.status == "done" and record.method == preset
    if preset not in ("full", "scratch"):
        unchanged = record.certificate and record.certificate.base_bit_equal
        assert unchanged is not False
    assert (tmp_path / "adapter" / "adapter.json").is_file()


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_learns(preset, tmp_path):
    """Twelve steps on the same few items: the loss is lower than at the start."""
    from core.training.run import run

    field = LEARNS.get(preset, "text")
    own = [
        "trainer.max_steps=12",
        "run.limit=6",
        "loader.batch_size=6",
        "run.test=false",
        "run.audit=warn",
        "threads=1",
    ]
    run(compose(field, [f"adapter={preset}", *GIVEN.get(preset, []), *own]), tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    losses = [float(row[-1]) for row in rows if row[1:3] == ["train", "loss"]]
    assert losses[-1] < losses[0], (losses[0], losses[-1])
