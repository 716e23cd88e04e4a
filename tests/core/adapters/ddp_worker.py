"""Six steps of Lightning DDP with two processes on one network; prints one JSON line. Run by test_ddp.py."""

import json
import sys

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

import core  # noqa: F401
from core.adapters import attach, trainable
from core.adapters.probe import pseudo_loss
from tests.core.adapters import zoo


class Adapted(L.LightningModule):
    def __init__(self, network):
        super().__init__()
        subject = zoo.build(network)
        self.keyword = next(iter(subject.example[1]), None)
        self.model = subject.model
        attach(
            self.model,
            "lora",
            targets=["attn.q", "attn.v", "mlp.out"],
            rank=2,
            roles=subject.roles,
            example=subject.example,
            seed=0,
        )
        self.before = {k: v.clone() for k, v in self.model.state_dict().items()}

    def training_step(self, batch, index):
        x = batch[0]
        return pseudo_loss(self.model(**{self.keyword: x}) if self.keyword else self.model(x)) / 1000

    def configure_optimizers(self):
        return torch.optim.AdamW(trainable(self.model).values(), 1e-2)


def main(network):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x = torch.randint(4, 60, (24, 10)) if network == "llama" else torch.randn(24, 3, 32, 32)
    module = Adapted(network)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_steps=6, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=2))
    total = torch.stack([p.detach().double().sum() for p in trainable(module.model).values()]).sum()
    sums = [torch.zeros_like(total) for _ in range(2)]
    torch.distributed.all_gather(sums, total)
    if trainer.global_rank == 0:
        after = module.model.state_dict()
        print(json.dumps({
            "steps": trainer.global_step,
            "base_equal": all(torch.equal(after[k], v) for k, v in module.before.items() if "_peft" not in k),
            "moved": sum(not torch.equal(after[k], v) for k, v in module.before.items() if "_peft" in k),
            "adapters": sum("_peft" in k for k in after),
            "ranks_equal": bool(sums[0] == sums[1]),
        }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
