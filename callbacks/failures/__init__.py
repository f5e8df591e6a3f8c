"""Callbacks that notice runs that have failed.

non_finite.py  ends a run with a NaN or infinite loss
failed_step.py keeps the step of that loss, for `python -m tools.replay`
disk.py        refuses a disk without room for a checkpoint
collapse.py    warns of networks that predict only one class, no pixel or every pixel
explosion.py   says what made a loss explode, and how to go on
memory.py      warns of a batch that does not fit into memory
"""
