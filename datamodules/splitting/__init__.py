"""Splits into train, val and test: pure functions of labels, groups, shares and a seed.

stratified.py    by class
grouped.py       by class, groups kept whole
whole_groups.py  the search for whole groups that come near the wanted shares
"""
