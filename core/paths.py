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


def locate(path: str) -> Path:
    """The file that a config means: `data://FIELD/file.csv` lies in the folder of real data, others are taken
    as they are (from the current directory).

    DataError   the folder of real data, or the file in it, is missing
    """
    from core.errors import DataError

    scheme, _, rest = path.partition("://")
    if scheme != "data":
        return Path(path).expanduser()
    folder = data_dir()
    if folder is None:
        named = os.environ.get("PEFT_ATLAS_DATA")
        got = f"no folder {named}" if named else "PEFT_ATLAS_DATA is not set"
        fix = "export PEFT_ATLAS_DATA=/path/to/data"
        raise DataError(where=path, got=got, allowed=f"a folder that holds {rest}", fix=fix)
    if not (folder / rest).exists():
        fix = "point PEFT_ATLAS_DATA at the folder of real data"
        raise DataError(where=path, got=f"no file {folder / rest}", allowed=f"a folder that holds {rest}", fix=fix)
    return folder / rest
