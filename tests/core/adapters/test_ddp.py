"""Lightning DDP, two real processes, without `find_unused_parameters`: liveness guarantees that none is unused."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("transformers")


@pytest.mark.parametrize("network", ["llama", "beit"])  # the call path, and the weight path
def test_two_processes_train_one_adapter(network):
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.adapters.ddp_worker", network]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        out, err = process.communicate(timeout=240)
    finally:  # a timed-out run leaves its second process behind
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert process.returncode == 0, err[-3000:]
    found = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
    assert found["steps"] == 6 and found["base_equal"] and found["ranks_equal"]
    assert found["moved"] == found["adapters"] > 0
