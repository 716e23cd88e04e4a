"""One server process that trains in forked children: see toy.serve."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.core.training import toy


class Server:
    def __init__(self, log: Path):
        self.log = log
        root = Path(__file__).resolve().parents[3]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.core.training.toy"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "w"), text=True, cwd=root,
        )  # fmt: skip

    def train(self, directory: Path, cfg: dict | None = None, **faults: int) -> int:
        """Exit status of a run in `directory`; -9 where a fault killed it."""
        directory.mkdir(parents=True, exist_ok=True)
        if cfg is not None:
            (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
        self.process.stdin.write(json.dumps({"directory": str(directory), "faults": faults}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server") / "log.txt")
    yield found
    found.process.kill()
    found.process.wait()


@pytest.fixture(scope="session")
def undisturbed(server, tmp_path_factory):
    """Directory of a run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    assert server.train(directory, toy.config(directory)) == 0, server.log.read_text()[-3000:]
    return directory
