"""Faults of disk, files, processes and clock: what a run does, what it keeps, its exit code; docs/reliability.md has the table."""
