"""Feature cache on disk: stores the features that a frozen backbone extracts from a data set, and reads them back.

    DIR/header.json                      how the features were produced, and every shard with its checksum; written last
    DIR/train-r000-00000.safetensors     shards of bounded size: features, label, index; here split train, process 0
    DIR/val-r001-00002.safetensors       ...
    DIR/files.jsonl                      names and sizes of the images, if the data set consists of files
    DIR/names.jsonl                      name of each sample, if the data set consists of files; for tables of predictions
    DIR/unfinished.json                  replaces the header while the extraction runs or after it was interrupted

The contract:

- Features are (n, D), or (n, views, D) for training samples with several views, in float32, float16 or bfloat16, all finite.
- A sample is identified by its split and its `index`, the position in its data set. Each sample is stored once, by any process.
- A file gets its name only when it is complete and on disk. After an interruption, complete files are kept and the extraction can
  be continued.
- Two caches with equal `Identity` hold the same features. A cache that does not match is rejected, and the error names the first
  difference.
- Nothing in a folder is trusted: a file that is missing, damaged, truncated or of a newer version raises a one-line `CacheError`.

docs/feature_cache.md describes every field of the format.

identity.py      how features were produced, and the first difference of two descriptions: `Identity`, `check_fits`
header.py        reads and writes the header: `read_header`
fingerprint.py   hashes of weights, tensors and lists of files: `hash_tensors`, `list_files`, `data_of_...`
shards.py        writes and reads one safetensors file
writer.py        `CacheWriter`: appends samples, continues an interrupted extraction, finishes a cache
reader.py        `CachedSplit`: the shards of a split as one matrix
sample_names.py  names of the samples: `read_names`
"""

from features.fingerprint import data_of_files, data_of_tensors, hash_tensors, list_files
from features.header import Header, Shard, SplitEntry, read_header
from features.identity import MEANING, CacheError, Identity, check_fits, difference
from features.reader import CachedSplit
from features.sample_names import names_by_index, read_names
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
    "names_by_index",
    "read_header",
    "read_names",
]
