"""A callback that writes which samples each process trains on, for tests that kill a run."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Recorder(Callback):
    """Appends a line [epoch, batch, indices] for each batch to a file of this process.

    Args:
        folder: Folder of the files.
        kill_at: Training batch, counted from the start of this process, before which all processes are killed; 0: none.
    """

    def __init__(self, folder: str, kill_at: int = 0) -> None:
        self.folder, self.kill_at, self.count = Path(folder), kill_at, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        if self.count == self.kill_at and trainer.global_rank == 0 and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.killpg(os.getpgid(0), signal.SIGKILL)
        with (self.folder / f"rank-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch_idx, batch["index"].tolist()]) + "\n")


def recorded(folder: Path) -> dict[tuple[int, int], list[list[int]]]:
    """Epoch and batch -> indices of each process; a batch that was done again must have had the same samples."""
    found: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for file in sorted(folder.glob("rank-*.jsonl")):
        own: dict[tuple[int, int], list[int]] = {}
        for epoch, batch, indices in map(json.loads, file.read_text().splitlines()):
            assert own.setdefault((epoch, batch), indices) == indices
        for place, indices in own.items():
            found[place].append(indices)
    return found
