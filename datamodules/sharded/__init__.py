"""Data sets in WebDataset shards: tars of (image, label) on a disk or in a store, read in an order that is resumed exactly.

datamodule.py   ShardedImagesDataModule
addresses.py    shard settings (folder, pattern, braces, list, URL) as a list of addresses
store.py        size, version and content of a shard, from a disk or any store that fsspec knows; tries again
cache.py        local copies of remote shards, up to a limit in bytes, shared by processes
tar_members.py  the samples of one tar, by WebDataset's key rule
shard_index.py  where each sample of a shard lies and what its header shows; built once, kept in a file
listing.py      the samples of several shards, with their classes
order.py        the order of an epoch
loader.py       batches, read and decoded by worker processes
"""
