"""Several processes: how the others are started, and sums whose order never changes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher


class Launcher(_SubprocessScriptLauncher):
    """Starts rank 1, 2, ... as `python -m core.training.run DIRECTORY`: the run's own config, not the command line.

    Repeating the command line would start a whole sweep again, or name another directory.
    """

    directory: Path

    def _call_children_scripts(self) -> None:
        self._check_can_spawn_children()
        cluster = self.cluster_environment
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
        os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(cluster.node_rank()), str(cluster.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        command = [sys.executable, "-m", "core.training.run", str(self.directory)]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.procs = [
            subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank), "PYTHONPATH": path})
            for rank in range(1, self.num_processes)
        ]

    def stop(self) -> None:
        """End the started processes, after an error here: they would wait for rank 0 for ever."""
        for process in self.procs:
            if process.poll() is None:
                process.kill()
            process.wait()

    def forget(self) -> None:
        """Leave no trace in the environment: the next job of a sweep is a single process again, or starts its own."""
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)


class Ddp(DDPStrategy):
    """Lightning's DDP, with that launcher."""

    def __init__(self, directory: Path, **options: Any):
        super().__init__(**options)
        self.directory = directory

    def _configure_launcher(self) -> None:
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)
        self._launcher.directory = self.directory


class OrderedSums(Callback):
    """From 3 ranks on, gradients are gathered and added in the order of the ranks.

    An all-reduce adds in an order that depends on an element's place in its bucket, and DDP fills its buckets anew
    after the first step: a resumed process would sum in another order, with other bits. Two ranks add alike.
    """

    def on_train_start(self, trainer, module) -> None:
        # Lightning ignores `ddp_comm_hook=` unless the device is CUDA, so it is registered here.
        if trainer.world_size > 2 and hasattr(trainer.strategy.model, "register_comm_hook"):
            trainer.strategy.model.register_comm_hook(None, in_rank_order)


def in_rank_order(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The mean over ranks of a bucket, added in rank order. DDP reads the annotations: they must be types, not text."""
    mine = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    work = dist.all_gather(parts, mine, async_op=True)

    def add(_: Any) -> torch.Tensor:
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total.div_(len(parts))

    return work.get_future().then(add)
