"""A sweep's cells follow each other in one process: what one of them held must be gone before the next."""

import gc

import torch
from omegaconf import OmegaConf

from core.training import run
from tests.core.training import toy


class Squashed(toy.Toy):
    """tanh keeps its own output for the backward pass."""

    def forward(self, batch):
        output = super().forward(batch)
        return output._replace(hidden=output.hidden.tanh())


def graphs():
    """Tensors with a history, alive anywhere in this process."""
    gc.collect()
    return [t for t in gc.get_objects() if type(t) is torch.Tensor and t.grad_fn is not None]


def test_a_finished_run_leaves_no_graph(tmp_path):
    before = {id(t) for t in graphs()}
    changes = {"backbone___target_": f"{__name__}.Squashed", "trainer__max_steps": 2, "threads": None}
    run.run(OmegaConf.create(toy.config(tmp_path, **changes)), tmp_path)
    assert [tuple(t.shape) for t in graphs() if id(t) not in before] == []
