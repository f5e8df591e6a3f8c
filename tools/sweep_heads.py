"""Trains a grid of heads together in one pass over a feature cache, ranks the settings, and trains the best as a run.

    python -m tools.sweep_heads --cache DIR --lr 1e-4 3e-4 1e-3 --weight_decay 0 0.01 --seeds 0 1 2 [--output DIR] [...]
    python -m tools.sweep_heads --cache DIR --logistic [--c 0.01 0.1 1 ...]

    OUTPUT/leaderboard.csv   every head: its settings, its figures on the validation split, its rank
    OUTPUT/sweep.png         the settings with the spread of their seeds
    OUTPUT/sweep.json        what was searched, how long it took, what it cost, the winner
    OUTPUT/best.yaml         the winner as an overlay, for the final run with augmented images
    OUTPUT/best/             the winner as a run of `main.py fit`, on the same cache

The winner is the setting with the best mean over its seeds, not the luckiest head. docs/sweep_heads.md.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.command_line import FAILED, INTERRUPTED, Parser, run_command, start

if TYPE_CHECKING:  # imported where it is used: the packages bring torch, and --help should not wait for that
    from tools.sweep_report import Setting
    from tools.sweep_settings import Plan
    from tools.sweep_training import Outcome

EVERY_S = 5.0  # between two lines of progress
EXAMPLES = """\
Settings that are not swept are those of --config, and any flag of main.py fit can be added, such as --model.label_smoothing 0.1.

examples:
  python -m tools.sweep_heads --cache caches/NAME --lr 1e-4 3e-4 1e-3 3e-3 --weight_decay 0 0.01 0.1 --seeds 0 1 2
  python -m tools.sweep_heads --cache caches/NAME --hidden none 256 512-256 --dropout 0 0.3 0.5 --epochs 10 --price 2.5
  python -m tools.sweep_heads --cache caches/NAME --logistic
"""


def parser() -> argparse.ArgumentParser:
    """The flags of the tool itself; all others are those of ``main.py fit``."""
    parser = Parser(
        "sweep_heads",
        usage="--cache DIR [--lr LR ...] [--weight_decay WD ...] [--seeds N ...] [...] [--output DIR]",
        description="Train a grid of heads together on cached features, and the best one as a run.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--cache", metavar="DIR", required=True, help="feature cache, as main.py predict writes it")
    add(
        "--config",
        action="append",
        metavar="FILE",
        help="configuration of the heads, and overlays (default: configs/cascade_cached.yaml)",
    )
    add("--lr", type=float, nargs="*", metavar="LR", help="peak learning rates")
    add("--weight_decay", type=float, nargs="*", metavar="WD", help="decoupled weight decays")
    add("--dropout", type=float, nargs="*", metavar="P", help="probabilities of dropping a hidden value")
    add("--hidden", nargs="*", metavar="SIZES", help="none (a linear head), 256, 512-256, ...")
    add("--seeds", type=int, nargs="*", default=[0], metavar="N", help="of initial weights and dropout (default: 0)")
    add("--epochs", type=int, metavar="N", help="passes over the training split")
    add("--batch_size", type=int, metavar="B", help="training samples in a batch")
    add(
        "--monitor",
        default="val/loss",
        metavar="FIGURE",
        help="decides the best epoch and the winner: val/loss (default), val/acc, val/balanced_acc, val/ece; of two classes "
        "also val/auroc, val/ap",
    )
    add("--logistic", action="store_true", help="instead: logistic regression over a grid of C, by L-BFGS")
    add(
        "--c",
        type=float,
        nargs="*",
        metavar="C",
        help="of --logistic: inverse strengths of the penalty (45, 1e-6 to 1e5)",
    )
    add("--price", type=float, metavar="P", help="of an hour of the device, to say what the search cost")
    add("--output", type=Path, metavar="DIR", help="folder, empty or new (default: sweeps/<cache>/<date-time>)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; ``argv`` as on the command line, None takes the process's own.

    Returns:
        The exit code; 1 where the winner's own run failed.
    """
    words = sys.argv[1:] if argv is None else argv

    def command() -> int:
        options, rest = parser().parse_known_args(words)
        check(options)
        return sweep_heads(options, rest, words)

    return run_command(command, "stopped")


def check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is read, and fill in what depends on other flags.

    Raises:
        ValueError: A flag is out of its range.
    """
    if options.price is not None and not (math.isfinite(options.price) and options.price >= 0):
        raise ValueError(f"--price: 0 or more for an hour of the device, got {options.price}")
    for name in ("lr", "weight_decay", "dropout", "hidden", "seeds", "c"):
        values = getattr(options, name)
        if values is not None and not values:
            raise ValueError(f"--{name}: one value or more is needed, got none")
    swept = [
        name for name in ("lr", "weight_decay", "dropout", "hidden", "epochs") if getattr(options, name) is not None
    ]
    if options.logistic and swept:
        raise ValueError(f"--{swept[0]}: is of no use with --logistic, whose only setting is --c")
    if options.c is not None and not options.logistic:
        raise ValueError("--c: is of use with --logistic only")
    if options.c is not None and min(options.c) <= 0:
        raise ValueError(f"--c: must be above 0, got {min(options.c)}")
    output = options.output or Path("sweeps", Path(options.cache).name, time.strftime("%Y-%m-%d_%H-%M-%S"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output}: is there already and nothing is overwritten; give a folder, empty or new")
    options.output = output


def arguments_of(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """What ``main.py fit`` is given for the heads of this sweep, swept settings aside."""
    configs = [word for path in options.config or ["configs/cascade_cached.yaml"] for word in ("--config", path)]
    flags = {
        "--data.cache": options.cache,
        "--trainer.max_epochs": options.epochs,
        "--data.batch_size": options.batch_size,
    }
    given = [word for name, value in flags.items() if value is not None for word in (name, str(value))]
    return [*configs, *given, *rest]


def sweep_heads(options: argparse.Namespace, rest: Sequence[str], command: list[str]) -> int:
    """Search, write, train the winner and say what to type next.

    Args:
        options: As parsed and checked.
        rest: Further flags of ``main.py fit``.
        command: The whole command line.

    Returns:
        0, or 1 where the winner's own run failed.

    Raises:
        UsageError: The configuration is wrong.
        ValueError: A flag is out of its range, or every head diverged.
        OSError: A file cannot be read or written.
        MisconfigurationException: The cache is not finished, or damaged.
    """
    from callbacks.figures import render, write_png
    from callbacks.run_folder import write_json, write_text
    from cli.app import configure_logging
    from tools.sweep_report import overlay, picture, settings_of, table, write_leaderboard
    from tools.sweep_settings import make_plan

    configure_logging()
    if options.logistic:
        from tools.sweep_logistic import logistic_path

        return logistic_path(options, arguments_of(options, rest), command)
    begun = time.monotonic()
    plan = make_plan(options, arguments_of(options, rest))
    for note in plan.notes:
        _say("note", note)
    seconds, outcomes = search(plan)
    settings = settings_of(outcomes, plan.monitor)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    write_leaderboard(output / "leaderboard.csv", outcomes, plan.monitor)
    print("\n".join(["", *table(settings, plan.monitor), ""]))
    if math.isnan(settings[0].mean):
        raise ValueError(f"every setting diverged with a seed or more; give lower --lr ({output / 'leaderboard.csv'})")
    write_png(output / "sweep.png", render(picture(settings, plan.monitor)))
    typed_again = f"python -m tools.sweep_heads {shlex.join(command)}"
    write_text(output / "best.yaml", overlay(settings[0], plan.recipe.epochs, typed_again))
    summary = summarise(plan, settings, seconds, options.price, typed_again)
    write_json(output / "sweep.json", summary)
    cost = f", {summary['cost']:.4g} at {options.price:g} an hour" if options.price is not None else ""
    _say("searched", f"{len(outcomes):,} heads in {seconds:.1f} s, {summary['device_hours']:.4f} device hours{cost}")
    return finish(options, arguments_of(options, rest), plan, settings[0], begun)


def search(plan: Plan) -> tuple[float, list[Outcome]]:
    """Train all heads of a plan, in as few passes as memory allows.

    Returns:
        Seconds, and the outcomes in the order of the grid.
    """
    from tools.sweep_settings import Batches
    from tools.sweep_training import blocks_of, bytes_of, train

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
    _say("sweep", f"{named} on {plan.device}, {plan.recipe.epochs} epochs of {plan.recipe.steps_per_epoch:,} steps")
    if len(passes) > 1:
        _say("memory", f"{len(passes)} passes over the cache, of at most {at_once:,} heads")
    found: list[tuple[int, Outcome]] = []
    progress = Progress(len(passes) * plan.recipe.epochs)
    for blocks in passes:
        ready = [make() for make in blocks]
        found += train(ready, batches.training, batches.validation, plan.recipe, plan.monitor, progress)
    return time.monotonic() - begun, [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]


class Progress:
    """A line every few seconds: epochs done, and when it will be over."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.done = epochs, 0
        self.begun = self.said = time.monotonic()

    def __call__(self, epoch: int) -> None:
        """Count a finished epoch."""
        self.done, now = self.done + 1, time.monotonic()
        if now - self.said >= EVERY_S:
            self.said = now
            left = (now - self.begun) / self.done * (self.epochs - self.done)
            _say("trained", f"{self.done} of {self.epochs} epochs, {left:.0f} s to go")


def summarise(
    plan: Plan, settings: Sequence[Setting], seconds: float, price: float | None, command: str
) -> dict[str, Any]:
    """What sweep.json holds, as plain values."""
    from tools.sweep_settings import typed

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


def finish(options: argparse.Namespace, arguments: list[str], plan: Plan, winner: Setting, begun: float) -> int:
    """Train the winner as a run of ours, compare it with the sweep, and say what to type next."""
    from callbacks.run_folder import write_json
    from cli.app import main as train
    from cli.resume import read_best
    from tools.sweep_figures import LOWER_IS_BETTER

    output, outcome, monitor = options.output, winner.outcomes[0], plan.monitor
    mode = "min" if monitor in LOWER_IS_BETTER else "max"
    chosen = ["--checkpoint.monitor", f"val/{monitor}", "--checkpoint.mode", mode]
    seed = ["--model.head_seed", str(outcome.head.seed)]
    # the overlay stands after the configurations, which flags win over
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
    _say("best", f"trained as a run: python main.py {shlex.join(words)}")
    if code := train(words):
        print(
            f"the winner's own run ended with exit code {code}; {output / 'best.yaml'} has its settings",
            file=sys.stderr,
        )
        return FAILED if code != INTERRUPTED else INTERRUPTED
    value = float(read_best(output / "best" / "checkpoints" / "best.ckpt")["value"])
    _say("compared", f"val/{monitor} {value:.6g} in the run, {outcome.best[monitor]:.6g} in the sweep")
    write_json(
        output / "best" / "sweep.json",
        {"sweep": str(output), f"val/{monitor}": value, f"val/{monitor} in the sweep": outcome.best[monitor]},
    )
    _say("took", f"{time.monotonic() - begun:.1f} s with the winner's run; {output / 'leaderboard.csv'}")
    _say("test it", f"python main.py test --run {output / 'best'}")
    _say(
        "final run",
        f"python main.py fit --config configs/cascade_train.yaml --config {output / 'best.yaml'} --data.root FOLDER",
    )
    return 0


def _say(what: str, text: str) -> None:
    print(f"{what:<10} {text}", flush=True)


if __name__ == "__main__":
    start(main)
