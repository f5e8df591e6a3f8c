"""Benchmarks of the prompted segmenters: speed beside transformers, and rare, thin objects."""
