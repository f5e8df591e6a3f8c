"""Loads weights of another training into a timm network: `transfer` (loading.py), by names of any library (published_names.py)."""

from networks.transfer.loading import Transfer, by_timm_names, first, percent, transfer
from networks.transfer.published_names import COUNTER, is_published_form

__all__ = ["COUNTER", "Transfer", "by_timm_names", "first", "is_published_form", "percent", "transfer"]
