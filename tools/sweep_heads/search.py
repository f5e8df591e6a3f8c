"""Runs the steps of a head sweep: trains all heads in as few passes as memory allows, summarises, trains the winner as a run."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import main as run
from cli.resume import read_best
from foundation.atomic_files import write_json
from foundation.project import MAIN
from tools.command_line import FAILED, INTERRUPTED, Progress, say
from tools.sweep_heads.final import final_command
from tools.sweep_heads.head_groups import Outcome, blocks_of, bytes_of
from tools.sweep_heads.report import Setting
from tools.sweep_heads.settings import Batches, Plan, typed
from tools.sweep_heads.training import train


def search(plan: Plan) -> tuple[float, list[Outcome]]:
    """Train all heads of a plan, in as few passes over the cache as memory allows.

    Returns:
        Duration in seconds, and the outcomes in the order of the grid.
    """
    begun, data, heads = time.monotonic(), plan.data, plan.heads
    batches = Batches(data, plan.device)
    width, classes, validated = data.feature_width, data.num_classes, len(data.splits["val"]["label"])
    largest = max(bytes_of(head, width, classes, validated) for head in heads)
    at_once = max(1, batches.budget() // largest)
    made = blocks_of(heads, width, classes, plan.recipe, data.batch_size, plan.device, min(len(heads), at_once))
    passes: list[list[Any]] = [[]]
    held = 0
    for make in made:
        size = len(make.args[0])
        if held and held + size > at_once:
            passes.append([])
            held = 0
        passes[-1].append(make)
        held += size
    named = f"{len(heads):,} heads of {len({head.setting for head in heads}):,} settings"
    say("sweep", f"{named} on {plan.device}, {plan.recipe.epochs} epochs of {plan.recipe.steps_per_epoch:,} steps")
    if len(passes) > 1:
        say("memory", f"{len(passes)} passes over the cache, of at most {at_once:,} heads")
    found: list[tuple[int, Outcome]] = []
    progress = Progress("trained", len(passes) * plan.recipe.epochs, "epochs")
    for blocks in passes:
        ready = [make() for make in blocks]
        found += train(ready, batches.training, batches.validation, plan.recipe, plan.monitor, progress)
    return time.monotonic() - begun, [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]


def summarise(
    plan: Plan, settings: Sequence[Setting], seconds: float, price: float | None, command: str
) -> dict[str, Any]:
    """Return the content of sweep.json as JSON types.

    Args:
        plan: The sweep.
        settings: All settings, best first.
        seconds: Duration of the search.
        price: Price of one device hour, or None.
        command: Command line of the sweep.
    """
    winner = settings[0]
    head, hours = winner.outcomes[0].head, seconds / 3600
    return {
        "command": command,
        "heads": len(plan.heads),
        "settings": len(settings),
        "diverged": sum(outcome.diverged for setting in settings for outcome in setting.outcomes),
        "epochs": plan.recipe.epochs,
        "steps_per_epoch": plan.recipe.steps_per_epoch,
        "batch_size": plan.data.batch_size,
        "device": str(plan.device),
        "seconds": round(seconds, 3),
        "device_hours": hours,
        "price_per_hour": price,
        "cost": None if price is None else hours * price,
        "monitor": f"val/{plan.monitor}",
        "winner": {
            "lr": head.lr,
            "weight_decay": head.weight_decay,
            "dropout": head.dropout,
            "hidden": typed(head.hidden),
            "seeds": [outcome.head.seed for outcome in winner.outcomes],
            "mean": winner.mean,
            "std": None if math.isnan(winner.spread) else winner.spread,
            "best_epochs": [outcome.best_epoch + 1 for outcome in winner.outcomes],
        },
    }


def train_winner(output: Path, arguments: list[str], plan: Plan, winner: Setting) -> int:
    """Train the winner as a run of `main.py fit`, compare its metric with the sweep, and print the command of the final run.

    The run itself prints how to test and use it.

    Args:
        output: Folder of the sweep.
        arguments: Arguments of `main.py fit` without the swept settings.
        plan: The sweep.
        winner: The winning setting.

    Returns:
        0; 1 if the run failed; 130 if it was interrupted.
    """
    outcome, monitor = winner.outcomes[0], plan.monitor
    chosen = ["--checkpoint.monitor", f"val/{monitor}", "--checkpoint.mode", "auto"]
    seed = ["--model.head_seed", str(outcome.head.seed)]
    # the overlay comes after the other configurations; flags override both
    words = [
        "fit",
        *arguments,
        "--config",
        str(output / "best.yaml"),
        *seed,
        *chosen,
        "--run_dir",
        str(output / "best"),
    ]
    say("best", f"trained as a run: {MAIN} {shlex.join(words)}")
    if code := run(words):
        print(
            f"the winner's own run ended with exit code {code}; {output / 'best.yaml'} has its settings",
            file=sys.stderr,
        )
        return FAILED if code != INTERRUPTED else INTERRUPTED
    value = float(read_best(output / "best" / "checkpoints" / "best.ckpt")["value"])
    say("compared", f"val/{monitor} {value:.6g} in the run, {outcome.best[monitor]:.6g} in the sweep")
    write_json(
        output / "best" / "sweep.json",
        {"sweep": str(output), f"val/{monitor}": value, f"val/{monitor} in the sweep": outcome.best[monitor]},
    )
    if (final := output / "final.yaml").is_file():
        say("final run", final_command(final, plan.data.header))
    return 0
