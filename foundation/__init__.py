"""The ground floor: small things that every other package may use, and that use none of them.

allocator.py     keeps freed memory in the process (glibc)
atomic_files.py  files that are written whole or not at all
durations.py     seconds as text
measuring.py     interleaved measurements, medians, the machine, tables and JSON of a benchmark
param_groups.py  the momentum of an optimiser's parameter group
plotting.py      colours, axes and PNG files of all pictures
project.py        where the project lies, and how its commands are typed
suggestions.py   ``did you mean ...?`` for a name that does not exist
"""
