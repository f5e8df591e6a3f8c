"""Train/val/test splits as pure functions of labels, groups, shares and a seed.

stratified.py    split stratified by class
grouped.py       split stratified by class that never divides a group
folds.py         one of k folds of the training data
whole_groups.py  heuristic that assigns groups of two or more samples to splits, used by grouped.py
"""
