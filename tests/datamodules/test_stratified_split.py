"""The stratified split: shares per class, seeds, nested training fractions, and the checks of labels and classes."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.splitting.stratified import check_labels, count_classes, stratified_split

LABELS = torch.tensor([0] * 100 + [1] * 33 + [2] * 7 + [3] * 1)[
    torch.randperm(141, generator=torch.Generator().manual_seed(0))
]


def test_every_class_is_split_to_within_one_sample() -> None:
    for held_out in (0.0, 0.1, 0.25, 0.5, 0.9):
        kept, out = stratified_split(LABELS, held_out, seed=0, name="val")
        assert sorted(kept.tolist() + out.tolist()) == list(range(141))
        assert kept.tolist() == sorted(kept.tolist())
        for label, size in enumerate((100, 33, 7, 1)):
            assert abs(int((LABELS[out] == label).sum()) - held_out * size) <= 0.5


def test_split_depends_on_seed_and_name() -> None:
    splits = [stratified_split(LABELS, 0.2, seed=seed, name=name)[1].tolist() for seed in (0, 1) for name in "ab"]
    torch.rand(3)
    assert stratified_split(LABELS, 0.2, seed=1, name="b")[1].tolist() == splits[3]
    assert len({tuple(split) for split in splits}) == 4


def test_used_samples_are_nested_and_do_not_change_the_held_out_samples() -> None:
    smaller: set[int] = set()
    for used in (0.01, 0.1, 0.3, 0.55, 1.0):
        kept, out = stratified_split(LABELS, 0.2, seed=3, name="val", used=used)
        assert torch.equal(out, stratified_split(LABELS, 0.2, seed=3, name="val")[1])
        assert smaller <= set(kept.tolist())
        assert not set(kept.tolist()) & set(out.tolist())
        for label, rest in enumerate((80, 26, 6, 1)):
            count = int((LABELS[kept] == label).sum())
            assert count == max(1, round(used * rest))  # every class keeps a sample
        smaller = set(kept.tolist())


def test_adding_to_one_class_does_not_change_the_others() -> None:
    more = torch.cat([LABELS, torch.tensor([3, 3, 3, 3, 3])])
    _, out = stratified_split(LABELS, 0.3, seed=0, name="val")
    _, out_of_more = stratified_split(more, 0.3, seed=0, name="val")
    assert out[LABELS[out] != 3].tolist() == out_of_more[more[out_of_more] != 3].tolist()


@pytest.mark.parametrize("bad", [-1, 4, 255])
def test_label_out_of_range_is_named(bad: int) -> None:
    labels = LABELS.clone()
    labels[17] = bad
    message = rf"label {bad} of sample 17 in the train data is outside 0..3: there are 4 classes"
    with pytest.raises(MisconfigurationException, match=message):
        check_labels(labels, 4, "the train data")
    check_labels(LABELS, 4, "the train data")


def test_classes_are_counted_and_empty_classes_are_an_error() -> None:
    assert count_classes(LABELS, ["a", "b", "c", "d"]).tolist() == [100, 33, 7, 1]
    with pytest.raises(MisconfigurationException, match=r"1 class has no training sample: 'e' \(4\); add samples"):
        count_classes(LABELS, ["a", "b", "c", "d", "e"])
    with pytest.raises(MisconfigurationException, match=r"2 classes have no training sample: 'e' \(4\), 'f' \(5\)"):
        count_classes(LABELS, ["a", "b", "c", "d", "e", "f"])
