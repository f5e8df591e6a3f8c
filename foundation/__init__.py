"""Small shared helpers: atomic file writes, plotting, benchmark measurements, durations, project paths, name suggestions.

Every other package may import from here; this package imports from none of them.

allocator.py     configures glibc to keep freed memory in the process
atomic_files.py  writes files atomically
durations.py     formats seconds as text
folder_lock.py   locks a folder for one process; survives crashes
launchers.py     finds the launcher (torchrun, srun, mpirun) that started this process
measuring.py     benchmarks: interleaved repeats, medians, machine description, tables and JSON reports
param_groups.py  reads and sets the momentum of an optimiser's parameter group
plotting.py      colours, axes and PNG files of all plots
project.py       paths of the project and its configurations, and the commands that start it
suggestions.py   ``did you mean ...?`` for an unknown name
"""
