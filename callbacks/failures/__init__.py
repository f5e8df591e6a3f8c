"""Callbacks that notice runs that have failed.

non_finite.py  ends a run with a NaN or infinite loss
collapse.py    warns of networks that predict only one class, no pixel or every pixel
memory.py      warns of a batch that does not fit into memory
"""
