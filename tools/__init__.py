"""Command-line tools around data sets and training runs: `python -m tools.NAME --help` lists the flags of one.

calibrate         fits temperature, exit threshold and prediction sets of a finished run      (docs/calibration.md)
cascade           chains two classifiers and compares the pair with each of them on its own   (docs/cascade_two_stage.md)
compare           compares runs of any system: metrics, settings, speed, cost                 (docs/compare.md)
cut_windows       cuts raw sensor recordings into windows for training and prediction         (docs/har_data.md)
experiments       runs and resumes named overlays on a configuration, and compares them       (docs/experiments.md)
export            writes a ternary run as a packed file, and verifies the file                (docs/export.md)
inspect_data      checks and describes a data set before training                             (docs/tools.md)
loader_benchmark  finds the fastest number of workers and prefetch, writes an overlay         (docs/tools.md)
outliers          scores how far images are from what a run knows: energy, AUROC            (docs/outliers.md)
probe             compares frozen backbones on a data set by a kNN and a linear probe         (docs/probe.md)
profile_model     measures time, memory and the best batch size of a configuration            (docs/profile_model.md)
replay            computes the failed step of a run again: what is not finite first           (docs/reliability.md)
report            writes the report of a run as Markdown and as one HTML file                 (docs/report.md)
signal_pictures   draws the image that each signal encoder makes, for the documentation       (docs/signal_images.md)
split_folder      splits a folder per class into train, val and test, overwrites nothing      (docs/tools.md)
sweep_heads       trains a grid of heads together on a feature cache, the best one as a run   (docs/sweep_heads.md)

Shared modules: command_line.py (argument parser, exit codes, progress lines), run_data.py (the datamodule of a configuration),
run_logits.py (logits of a run's split).
Tools may import every other package; only tests and benchmarks import tools. Exit codes: 0 success; 1 the result failed its check
and was deleted, or a run that the tool started failed; 2 wrong input, reported in one line, nothing written; 130 interrupted.
"""

import sys

from foundation.interrupts import end_in_one_line

if "".join(sys.argv[:1]).startswith(("-m", "vision-recipes")):  # this process is about to import a tool and run it
    end_in_one_line()
