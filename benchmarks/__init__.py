"""Benchmarks: compare the speed or accuracy of parts of this project with common alternatives (see docs/benchmarks.md).

step_overhead.py   a training step of our run against a bare PyTorch loop    (tasks.py: networks and data; turns.py: the loop)
loader.py          our in-memory loader against torchvision's per-sample pipeline
folder_pipeline.py our pipeline for image folders against torchvision's reference pipeline    (photos.py: generated JPEGs)
signal_images.py   our signal encoders against pyts and matplotlib
cached_head.py     a head on cached features against a head behind its backbone, and ten epochs on a large cache
cascade.py         two public CIFAR-10 networks as a cascade against the larger network
exit_guarantee.py  how often an exit threshold with a guarantee misses its target on real logits
clipseg.py         our CLIPSeg with several prompts per image against transformers'
head_sweep.py      heads trained together against separate runs one after another
logistic_path.py   our logistic regression over a grid of C against scikit-learn's
lr_rules.py       rules of the learning-rate finder on simulated (lr_curves.py) and real sweeps
ternary_inference.py   a ternary network as int8 ONNX against torch, onnxruntime, OpenVINO    (inference_peers.py: the contenders)
har/               UCI HAR: rules for choosing the epoch among the training people (folds.py), other sampling rates (rates.py)

Repeats, medians, machine description, tables and JSON are in foundation/measuring.py. Benchmarks are not tests, because results
depend on the machine; the tests only check that both sides compute the same result.
"""
