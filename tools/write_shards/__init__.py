"""Writes WebDataset shards from class folders or from a table of labels."""
