"""Trains under DistributedDataParallel in two processes, and alone; leaves the weights in a folder.

Run by a test: python lightning_in_two_processes.py FOLDER
"""

import logging
import multiprocessing
import os
import socket
import sys
import warnings
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from rmtspec.adapters.torch.callbacks.lightning import RMTPrunerCallback

OPTIONS = {"include": r"^first(\.inner)?$", "rule": "fraction", "keep": 0.3, "fit_cutoff": None}
OPTIONS |= {"recut": "factors"}


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(40, 60)
        self.last = nn.Linear(60, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.last(torch.tanh(self.first(x))), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


class Save(lightning.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def train(folder, name, *others, rank=0, count=1, resume=None, **options):
    torch.manual_seed(0)
    model = Net()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(128, 40, generator=generator)
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[RMTPrunerCallback(every=1, **OPTIONS), *others],
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = TensorDataset(x, x[:, :3] * x[:, 3:6])
    share = DistributedSampler(data, count, rank, shuffle=False)  # Lightning's own shuffles
    batches = DataLoader(data, batch_size=16 // count, sampler=share)
    trainer.fit(model, batches, ckpt_path=resume)
    torch.save(model.state_dict(), folder / f"{name}.pt")


def member(folder, rank, port):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    two = {"rank": rank, "count": 2, "devices": 2, "strategy": "ddp"}
    saved = folder / "one epoch.ckpt"
    train(folder, rank, Save(saved), **two)
    train(folder, f"resumed {rank}", resume=saved, **two)
    torch.distributed.destroy_process_group()


def main(folder):
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    members = [fork.Process(target=member, args=(folder, rank, port)) for rank in range(2)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    if any(process.exitcode for process in members):
        sys.exit(1)
    train(folder, "alone")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
