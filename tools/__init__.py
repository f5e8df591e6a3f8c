"""Commands that train nothing: `python -m tools.NAME --help`.

export.py        a ternary run as a file as small as its symbols, verified        (docs/export.md)
inspect_data.py  what is in a data set, before it is trained on                     (docs/tools.md)
loader_benchmark.py  which workers and prefetch are fastest, as an overlay         (docs/tools.md)
split_folder.py  a folder per class into train, val and test, nothing overwritten   (docs/tools.md)

They may import everything; nothing imports them but tests. Exit codes: 0 done; 1 what was made did not hold up and is gone;
2 wrong input, said in one line, and nothing written.
"""
