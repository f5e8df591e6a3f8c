"""The RunSummary callback: writes training_summary.json, weights.safetensors and TensorBoard hyperparameters after a fit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch import Tensor, nn

from callbacks.checkpoints import EPOCH, Checkpoints
from callbacks.find_callbacks import find_callbacks
from callbacks.learning_rate_finder import found_rate
from callbacks.metrics_log import read_metrics
from callbacks.run_folder import RunFolder
from foundation.atomic_files import replace_file, write_json
from foundation.bounded.text import read_json
from foundation.checkpoint_files import read_checkpoint
from metrics.directions import direction_of, is_better, tie_breaker

NETWORK = "network."  # prefix of the network's tensors in a module's state_dict


def best_metrics(rows: list[dict[str, float]], chosen: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Return the best value and its epoch for every training and validation metric that has a direction.

    Args:
        rows: Rows of metrics.csv.
        chosen: Content of best.json: its epoch counts where the table has several of the same value, and where the direction of its
            metric is not known.

    Returns:
        ``value`` and ``epoch`` by metric; among epochs of equal value the one with the lowest loss, then the earliest.

    >>> best_metrics([{"epoch": 1, "step": 5, "val/acc": 0.5}, {"epoch": 2, "step": 10, "val/acc": 0.4}])
    {'val/acc': {'value': 0.5, 'epoch': 1}}
    """
    best: dict[str, tuple[float, float | None]] = {}
    epochs: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            mode = direction_of(name)
            if mode is None or not name.startswith(("train/", "val/", "val_raw/")) or name == "train/loss_step":
                continue
            new = (value, row.get(tie_breaker(name) or ""))
            if is_better(new, best.get(name), mode):
                best[name], epochs[name] = new, int(row["epoch"])
    found = {name: {"value": best[name][0], "epoch": epochs[name]} for name in best}
    if chosen and (metric := chosen["metric"]) != EPOCH and found.get(metric, chosen)["value"] == chosen["value"]:
        found[metric] = {"value": chosen["value"], "epoch": chosen["epoch"]}
    return found


def read_best(folder: Path) -> dict[str, Any]:
    """Return the content of best.json of a run folder, empty if there is none."""
    path = folder / "checkpoints" / "best.json"
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except TypeError:
        raise ValueError(f"{path}: is no table of a metric") from None


def earlier_best(results: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Say that the results of an evaluation are of an earlier best.ckpt, as after a resume that found a better one; empty if not.

    Args:
        results: Content of STAGE_metrics.json.
        best: Content of best.json.

    >>> earlier_best({"checkpoint": "best.ckpt", "epoch": 2, "step": 16}, {"epoch": 4, "step": 32})
    'of an earlier best.ckpt (epoch 2, now 4)'
    """
    known = results.get("step") is not None and best.get("step") is not None
    if not known or results.get("checkpoint") != "best.ckpt" or results["step"] == best["step"]:
        return ""
    return f"of an earlier best.ckpt (epoch {results.get('epoch')}, now {best.get('epoch')})"


def best_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the network's tensors in a checkpoint: the averaged ones if the checkpoint has them, else the raw ones."""
    state = {**checkpoint["state_dict"], **checkpoint.get("ema", {}).get("state_dict", {})}
    return {
        name.removeprefix(NETWORK): tensor.contiguous() for name, tensor in state.items() if name.startswith(NETWORK)
    }


def write_weights(folder: Path) -> None:
    """Write weights.safetensors from the best checkpoint, or from the last one if there is no best."""
    path = folder / "checkpoints" / "best.ckpt"
    path = path if path.is_file() else path.with_name("last.ckpt")
    if not path.is_file():  # a run without checkpoints
        return
    checkpoint = read_checkpoint(path)
    with replace_file(folder / "weights.safetensors") as temporary:
        save_file(best_weights(checkpoint), temporary, metadata={"checkpoint": path.name})


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten a run's settings for TensorBoard's hyperparameter table: ``lr``, ``data/batch_size``, ``trainer/precision``."""
    settings = {"seed": config.get("seed_everything"), **config.get("model", {}).get("init_args", {})}
    settings |= {f"data/{name}": value for name, value in config.get("data", {}).get("init_args", {}).items()}
    trainer = config.get("trainer", {})
    for name in ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val"):
        settings[f"trainer/{name}"] = trainer.get(name)
    return {name: value for name, value in settings.items() if isinstance(value, (bool, int, float, str))}


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Count the parameters of a module and those that are trained.

    >>> count_parameters(nn.Linear(2, 3))
    {'total': 9, 'trained': 9}
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return {"total": sum(size for size, _ in sizes), "trained": sum(size for size, trained in sizes if trained)}


def smaller_batches(folder: Path) -> list[dict[str, Any]]:
    """List the resumes that cut batches into parts after running out of memory: batch size, accumulation, configuration file."""
    resumes = sorted(folder.glob("config.resume-*.yaml"), key=lambda path: int(path.stem.rpartition("-")[2]))
    found: list[dict[str, Any]] = []
    was = None
    for path in [folder / "config.yaml", *resumes]:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        batch = config.get("data", {}).get("init_args", {}).get("batch_size")
        now = config.get("trainer", {}).get("accumulate_grad_batches")
        if was is not None and now != was:
            found.append({"batch_size": batch, "accumulate_grad_batches": now, "since": path.name})
        was = now
    return found


class RunSummary(Callback):
    """Writes the summary files at the end of a fit, using only the files in the run folder.

    If a run is killed while it writes them, resuming it writes them again.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary files."""
        run = next(iter(find_callbacks(trainer, RunFolder)), None)
        if run is None or run.path is None or not trainer.is_global_zero or not (run.path / "metrics.csv").is_file():
            return
        rows = read_metrics(run.path / "metrics.csv")
        write_weights(run.path)
        summary = self.summary(trainer, run, rows)
        write_json(run.path / "training_summary.json", summary)
        metrics = {f"best/{k}": best["value"] for k, best in summary["best_metrics"].items() if k.startswith("val/")}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                settings = hyperparameters(summary["training_args"])
                if "learning_rate" in summary:
                    settings["lr_configured"] = summary["learning_rate"]["configured"]
                logger.log_hyperparams(settings, metrics)

    def summary(self, trainer: Trainer, run: RunFolder, rows: list[dict[str, float]]) -> dict[str, Any]:
        """Build the content of training_summary.json."""
        assert run.path is not None
        epochs = [row for row in rows if "train/loss" in row or any(name.startswith("val/") for name in row)]
        final = {name: value for name, value in (epochs[-1] if epochs else {}).items() if name not in ("epoch", "step")}
        best = best_metrics(rows, read_best(run.path))
        content: dict[str, Any] = {
            "best_metrics": best,
            "final_metrics": final,
            "total_epochs": int(epochs[-1]["epoch"]) if epochs else 0,
            "total_steps": trainer.global_step,
            "parameters": count_parameters(trainer.lightning_module),
            "training_args": yaml.safe_load(run.config),
        }
        if found := found_rate(run.path, content["training_args"]):
            content["learning_rate"] = {
                "used": found.lr,
                "configured": found.configured,
                "rule": found.rule,
                "reason": found.reason,
            }
        checkpoints = trainer.checkpoint_callback
        if isinstance(checkpoints, Checkpoints) and checkpoints.best_score is not None:
            name = checkpoints.monitor.replace("/", "_")
            content[f"best_{name}"] = {"value": checkpoints.best_score, "epoch": checkpoints.best_epoch}
        content["resumes"] = run.resumes
        if smaller := smaller_batches(run.path):
            content["out_of_memory"] = smaller
        content["time"] = {"seconds": round(run.elapsed(), 1), "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
        content["environment"] = read_json(run.path / "environment.json")
        return content
