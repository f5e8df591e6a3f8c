"""The command line: ``main(args)`` runs one command and returns its exit code.

app.py        main: what a command ends in, as one readable line and an exit code
own_flags.py  --run_dir, --resume, --run, --ckpt, --test_after_fit: what comes before a configuration
vision_cli.py our LightningCLI: links, callbacks that every run has, the commands
parser.py     the parser, whose errors are short and suggest what was meant
out_of_memory.py  what to say where memory ran out, and the start that goes on by itself
resume.py     which checkpoint, which configuration, what may change
help.py       --help with a configuration: every setting of the classes that it names
"""

from cli.app import main

__all__ = ["main"]
