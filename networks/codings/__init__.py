"""Codings of ternary symbols as bytes: trits.py (fixed length), entropy.py (interleaved rANS)."""
