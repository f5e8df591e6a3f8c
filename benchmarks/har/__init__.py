"""Benchmarks of HAR on UCI HAR: choice of the epoch among the training people, and recordings at other sampling rates."""
