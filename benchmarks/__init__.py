"""Side-by-side measurements against peers, each printing ratios; docs/benchmarks.md says how to read them.

step_overhead.py  our run against a bare PyTorch loop of the same step    (tasks.py: networks and data; turns.py: the loop)
loader.py         our in-memory loader against torchvision's per-sample pipeline
cached_head.py    a head on cached features beside one behind its backbone, and ten epochs on a large cache
cascade.py        two public CIFAR-10 networks as a cascade beside the larger one alone
exit_guarantee.py how often a threshold with a guarantee misses its target on real logits
clipseg.py        our CLIPSeg with several prompts on an image against transformers'
head_sweep.py     heads trained together against our own runs one after another
logistic_path.py  our logistic regression over a grid of C against scikit-learn's
measuring.py        repeats, medians, the machine, tables and JSON

They are no tests: a figure depends on the machine, so tests only check that both sides compute the same.
"""
