"""The command line: ``main(args)`` runs one command and returns its exit code.

app.py              main: runs a command, reports errors in one line, returns the exit code
run_flags.py        --run_dir, --resume, --run, --ckpt, --test_after_fit, --cache: flags parsed before the configuration
vision_cli.py       the LightningCLI subclass: fit, validate, test and predict, the callbacks of every run, data-to-model links
parser.py           the argument parser
messages.py         its errors as one readable line; setting_hints.py: the closest name, section or class; changed_values.py
named_classes.py    the classes that configurations and flags name, and their settings
synonyms.py         names of other programs for our settings, and what to give in their place
config_files.py     checks of configuration files
trainer/            options, callbacks and loggers of the Trainer, and their checks
next_commands.py    the last lines of a fit
launchers.py        compares the processes of a launcher (torchrun, srun, mpirun) with those of the run
resume.py           finds checkpoint and configuration of a run, checks which settings a resumed run may change
processes.py        resume with another number of processes
out_of_memory.py    out-of-memory message, automatic restart with a smaller batch
test_time.py        --tta: several views of each image, and the gain
predictions.py      writes predictions.csv
load_datamodule.py  builds only the datamodule of a configuration, for tools
help.py             --help, with every setting of the classes in a configuration
"""

from foundation.interrupts import one_line_if_interrupted

with one_line_if_interrupted():
    from cli.app import main

__all__ = ["main"]
