"""The feature cache: what a frozen backbone made of a data set, once, on disk.

    DIR/header.json                      what the features are made of, every shard with its checksum; written last
    DIR/train-r000-00000.safetensors     shards of bounded size: features, label, index; of split train, of process 0
    DIR/val-r001-00002.safetensors       ...
    DIR/files.jsonl                      names and sizes of the images, where these are files
    DIR/unfinished.json                  in place of the header while the extraction runs, or was interrupted

The contract:

- Features are (n, D), or (n, views, D) for training samples with several views, in float32, float16 or bfloat16, all finite.
- A sample is named by its split and its `index`, its place in its data set; it is there once, whoever wrote it.
- A file has its name only once it is whole and on disk: whatever happens, what was complete is kept, and the extraction goes on.
- Two caches of equal `Identity` hold the same features. One that does not fit is refused with the one thing that differs.
- Nothing in a folder is believed: what is missing, damaged, truncated or of a newer version is a `CacheError` of one line.

docs/feature_cache.md has the format field by field.

identity.py      what a cache is made of, and in what two differ: `Identity`, `check_fits`
header.py        its header: `read_header`
fingerprint.py   hashes of weights, tensors and lists of files: `hash_tensors`, `list_files`, `data_of_...`
shards.py        one safetensors file
writer.py        `CacheWriter`: append, go on, finish
reader.py        `CachedSplit`: the shards of a split as one matrix
"""

from features.fingerprint import data_of_files, data_of_tensors, hash_tensors, list_files
from features.header import Header, Shard, SplitEntry, read_header
from features.identity import MEANING, CacheError, Identity, check_fits, difference
from features.reader import CachedSplit
from features.writer import CacheWriter

__all__ = [
    "MEANING",
    "CacheError",
    "CacheWriter",
    "CachedSplit",
    "Header",
    "Identity",
    "Shard",
    "SplitEntry",
    "check_fits",
    "data_of_files",
    "data_of_tensors",
    "difference",
    "hash_tensors",
    "list_files",
    "read_header",
]
