"""Where things lie: configuration in a checkout or in an installed wheel, real data, outputs."""

from __future__ import annotations

import os
from pathlib import Path


def conf_dir() -> Path:
    """The configuration tree: the checkout's `conf/`, else the copy inside an installed wheel."""
    here = Path(__file__).resolve().parent
    checkout = here.parent / "conf"
    return checkout if checkout.is_dir() else here / "_conf"


def data_dir() -> Path | None:
    """The folder of real data and weights (environment variable PEFT_ATLAS_DATA), or None where there is none."""
    named = os.environ.get("PEFT_ATLAS_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return folder if folder.is_dir() else None
