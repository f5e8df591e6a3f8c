"""Compares frozen backbones on a data set by a kNN and a linear probe; see docs/probe.md."""
