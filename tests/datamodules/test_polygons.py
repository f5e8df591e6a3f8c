"""Rasterised polygons and run lengths: compared with matplotlib's point-in-polygon test and with masks drawn by hand."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from datamodules.segmentation.polygons import polygon_mask, run_mask, shapes_mask


def picture(mask: NDArray[np.uint8]) -> list[str]:
    return ["".join(".#"[value] for value in row) for row in mask.tolist()]


def of(*numbers: float) -> NDArray[np.float64]:
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def test_a_rectangle_has_as_many_pixels_as_its_area() -> None:
    assert picture(polygon_mask(of(1, 1, 4, 1, 4, 3, 1, 3), 4, 6)) == ["......", ".###..", ".###..", "......"]
    assert polygon_mask(of(0.4, 0.4, 0.6, 0.4, 0.6, 0.6, 0.4, 0.6), 1, 1).sum() == 1, "it has the pixel's middle"
    assert polygon_mask(of(0.6, 0.0, 1.4, 0.0, 1.4, 2.0, 0.6, 2.0), 2, 2).sum() == 0, "it passes between the middles"


def test_neighbours_share_no_pixel_and_leave_no_gap() -> None:
    slanted = (of(0, 0, 7.3, 0, 2.7, 9, 0, 9), of(7.3, 0, 10, 0, 10, 9, 2.7, 9))
    masks = [polygon_mask(points, 9, 10) for points in slanted]
    assert (masks[0] + masks[1] == 1).all()


def test_a_polygon_with_a_hole() -> None:
    """The outline goes around the square, along a bridge to the hole, around it in the other direction, and back."""
    keyhole = of(0, 0, 6, 0, 6, 6, 0, 6, 0, 0, 2, 2, 2, 4, 4, 4, 4, 2, 2, 2)
    expected = ["######", "######", "##..##", "##..##", "######", "######"]
    assert picture(polygon_mask(keyhole, 6, 6)) == expected


def test_parts_are_united() -> None:
    parts = [of(0, 0, 3, 0, 3, 2, 0, 2), of(2, 1, 5, 1, 5, 3, 2, 3), of(6, 0, 7, 0, 7, 1, 6, 1)]
    assert picture(shapes_mask(parts, 3, 7)) == ["###...#", "#####..", "..###.."]
    assert not shapes_mask([], 3, 7).any()


def test_parts_outside_of_the_image_are_cut_off() -> None:
    assert picture(polygon_mask(of(-5, -5, 2, -5, 2, 2, -5, 2), 3, 4)) == ["##..", "##..", "...."]
    assert polygon_mask(of(-50, -50, 90, -50, 90, 90, -50, 90), 3, 4).all()
    for shift in ((-20, 0), (20, 0), (0, -20), (0, 20)):
        assert not polygon_mask(of(0, 0, 3, 0, 3, 3) + shift, 5, 5).any()


@pytest.mark.parametrize("seed", range(6))
def test_any_polygon_equals_a_test_of_each_pixel_centre(seed: int) -> None:
    """Stars around a point, partly outside; without self-intersections matplotlib's winding number equals the even-odd rule."""
    random = np.random.default_rng(seed)
    angle = np.sort(random.uniform(0, 2 * np.pi, 40))
    radius = random.uniform(5, 30, 40)
    points = np.stack([25 + radius * np.cos(angle), 12 + radius * np.sin(angle)], axis=1)
    x, y = np.meshgrid(np.arange(48) + 0.5, np.arange(31) + 0.5)
    inside = Outline(points).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(31, 48)
    assert np.array_equal(polygon_mask(points, 31, 48), inside.astype(np.uint8))
    assert 0.1 < inside.mean() < 0.95


def test_a_disc() -> None:
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    mask = polygon_mask(np.stack([50 + 30 * np.cos(angle), 40 + 30 * np.sin(angle)], axis=1), 80, 100)
    x, y = np.meshgrid(np.arange(100) + 0.5, np.arange(80) + 0.5)
    assert np.array_equal(mask == 1, (x - 50) ** 2 + (y - 40) ** 2 < 900)


def test_runs_go_down_the_columns() -> None:
    assert picture(run_mask(np.array([1.0, 3, 2]), 2, 3)) == [".#.", "##."]
    assert picture(run_mask(np.array([0.0, 2, 4]), 2, 3)) == ["#..", "#.."]
