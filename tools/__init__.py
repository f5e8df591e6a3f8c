"""Commands that train nothing: `python -m tools.NAME --help`.

cascade.py       two classifiers one after the other, beside each alone            (docs/cascade_two_stage.md)
compare.py       runs of any system: figures, settings, speed, cost                (docs/compare.md)
export.py        a ternary run as a file as small as its symbols, verified        (docs/export.md)
experiments.py   named overlays on a configuration: run, resumed, compared           (docs/experiments.md)
inspect_data.py  what is in a data set, before it is trained on                     (docs/tools.md)
loader_benchmark.py  which workers and prefetch are fastest, as an overlay         (docs/tools.md)
profile_model.py  time, memory and the best batch size of a configuration           (docs/profile_model.md)
report.py         the report of a run as markdown and one HTML file                    (docs/report.md)
split_folder.py  a folder per class into train, val and test, nothing overwritten   (docs/tools.md)
sweep_heads.py   a grid of heads trained together on a feature cache, the best as a run (docs/sweep_heads.md)

They may import everything; nothing imports them but tests. Exit codes: 0 done; 1 what was made did not hold up and is gone;
2 wrong input, said in one line, and nothing written.
"""
