"""The simulators: scribbles, points, boxes, and masks on a few slices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.datamodules.scribbles.simulate import SIMULATORS, LabelMap
from mambaseg.datamodules.scribbles.strokes import region_strokes, surrounding_strokes, with_breaks
from mambaseg.datamodules.scribbles.thinning import Mask
from mambaseg.errors import InputError

MOST_STROKES = 12
"""Strokes after which a region counts as full, however little of it they cover."""


@dataclass(frozen=True)
class EverySlice:
    """Shared by simulators that annotate slices alike.

    Attributes:
        every: Annotate one slice of so many, from a random first one.
        missing: Probability that a class of a slice is overlooked.
    """

    every: int = 1
    missing: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.missing <= 1:
            raise InputError(f"simulator: every must be 1 or more and missing in [0, 1], not {self}.")

    def chooses(self, levels: int, rng: np.random.Generator) -> Sequence[int]:
        """Return which of a volume's slices are annotated at all."""
        return range(int(rng.integers(min(self.every, levels))), levels, self.every)

    def seen(self, label: LabelMap, num_classes: int, rng: np.random.Generator) -> Iterator[tuple[int, Mask]]:
        """Yield the classes of a slice that are not overlooked, with their regions (H, W)."""
        for c in range(num_classes):
            region = label == c
            if region.any() and rng.random() >= self.missing:
                yield c, region


@SIMULATORS.register("scribble")
@dataclass(frozen=True)
class Scribbles(EverySlice):
    """Strokes within every structure, and one round the foreground; the defaults match ACDC's expert scribbles.

    Strokes never leave their class.

    Attributes:
        coverage: Fraction of each class under strokes, background first; the last holds for all further classes.
        spread: Standard deviation of the logarithm of a slice's coverage.
        width: Pen width in pixels.
        breaks: Expected gaps in a stroke.
    """

    coverage: Sequence[float] = (0.0066, 0.10, 0.14, 0.10)
    spread: float = 0.35
    width: int = 1
    breaks: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coverage or not all(0 <= c <= 1 for c in self.coverage):
            raise InputError(f"simulator 'scribble': coverage is {self.coverage}; it needs fractions in [0, 1].")
        if self.width < 1 or self.spread < 0 or self.breaks < 0:
            raise InputError(f"simulator 'scribble': width must be 1 or more, spread and breaks 0 or more, not {self}.")

    def annotate(self, label: LabelMap, num_classes: int, rng: np.random.Generator) -> LabelMap:
        """Return the scribbles (H, W) of a mask (H, W)."""
        foreground = (label != 0) & (label != IGNORE_INDEX)
        result = np.full(label.shape, IGNORE_INDEX, np.uint8)
        for c, region in self.seen(label, num_classes, rng):
            # The mean of a log-normal factor is 1 only with this shift.
            factor = np.exp(self.spread * rng.standard_normal() - self.spread**2 / 2)
            count = max(2, round(region.sum() * self.coverage[min(c, len(self.coverage) - 1)] * factor))
            if c == 0:
                strokes = surrounding_strokes(region, foreground, count // self.width, rng)
                self._draw(result, c, region, strokes, count, rng)
            else:
                window = _bounding_box(region)
                inner = region[window]
                self._draw(result[window], c, inner, region_strokes(inner, rng), count, rng)
        return result

    def _draw(
        self, result: LabelMap, c: int, region: Mask, strokes: Iterator[list[int]], count: int, rng: np.random.Generator
    ) -> None:
        """Draw strokes into ``result`` until ``count`` pixels of the region carry the class."""
        marked = np.zeros(region.shape, bool)
        for stroke, _ in zip(strokes, range(MOST_STROKES), strict=False):
            left = count - int(marked.sum())
            if left <= 0:
                break
            line = np.zeros(region.shape, bool)
            line.flat[with_breaks(stroke, self.breaks, rng)[: -(-left // self.width)]] = True
            marked |= _widened(line, self.width) & region
        result[marked] = c


@SIMULATORS.register("points")
@dataclass(frozen=True)
class Points(EverySlice):
    """Clicks: a few dots in every structure and in the background.

    Attributes:
        clicks: Dots in each class of a slice.
        radius: Radius of a dot in pixels; 0 marks single pixels.
    """

    clicks: int = 1
    radius: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clicks < 1 or self.radius < 0:
            raise InputError(f"simulator 'points': clicks must be 1 or more and radius 0 or more, not {self}.")

    def annotate(self, label: LabelMap, num_classes: int, rng: np.random.Generator) -> LabelMap:
        """Return the dots (H, W) in a mask (H, W); people click well inside a structure, and so do these."""
        from scipy import ndimage

        result = np.full(label.shape, IGNORE_INDEX, np.uint8)
        for c, region in self.seen(label, num_classes, rng):
            depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
            inside = np.flatnonzero(depth >= 0.5 * depth.max()) if c else np.flatnonzero(region)
            dots = np.zeros(label.shape, bool)
            dots.flat[rng.choice(inside, min(self.clicks, len(inside)), replace=False)] = True
            result[_widened(dots, 2 * self.radius + 1) & region] = c
        return result


@SIMULATORS.register("boxes")
@dataclass(frozen=True)
class Boxes(EverySlice):
    """One bounding box a structure: all outside the boxes is background, and the middle of a box is its class.

    What else lies within a box stays unknown.

    Attributes:
        margin: Largest error of a box's sides, outwards, in pixels.
        core: Fraction of each structure that counts as its middle: its deepest pixels.
    """

    margin: int = 2
    core: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin < 0 or not 0 <= self.core <= 1:
            raise InputError(f"simulator 'boxes': margin must be 0 or more and core in [0, 1], not {self}.")

    def annotate(self, label: LabelMap, num_classes: int, rng: np.random.Generator) -> LabelMap:
        """Return what the boxes of a mask (H, W) tell, (H, W)."""
        from scipy import ndimage

        seen = dict(self.seen(label, num_classes, rng))
        outside = label != IGNORE_INDEX
        for c in np.unique(label[(label != 0) & outside]).tolist():
            rows, columns = _bounding_box(label == c)
            top, bottom, left, right = rng.integers(0, self.margin + 1, 4).tolist()
            # A box that was overlooked says nothing, but the annotator did not call its inside background either.
            outside[
                max(rows.start - top, 0) : rows.stop + bottom, max(columns.start - left, 0) : columns.stop + right
            ] = 0
        result = np.where(outside & (0 in seen), 0, IGNORE_INDEX).astype(np.uint8)
        for c, region in seen.items():
            if c:
                depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
                count = max(1, round(self.core * region.sum()))
                result.flat[np.argsort(depth, axis=None, kind="stable")[-count:]] = c
        return result


@SIMULATORS.register("slices")
@dataclass(frozen=True)
class Slices:
    """Whole masks, on a few slices of each volume.

    Attributes:
        count: Annotated slices of a volume, at even distances.
    """

    count: int = 3

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"simulator 'slices': count must be 1 or more, not {self.count}.")

    def chooses(self, levels: int, rng: np.random.Generator) -> Sequence[int]:
        """Return which of a volume's slices are annotated: the middles of equal parts, jointly shifted at random."""
        count = min(self.count, levels)
        shift = rng.uniform(0, 1)
        return sorted({int((i + shift) * levels / count) for i in range(count)})

    def annotate(self, label: LabelMap, num_classes: int, rng: np.random.Generator) -> LabelMap:
        """Return the mask (H, W) itself."""
        return label.copy()


def _bounding_box(region: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _widened(line: Mask, width: int) -> Mask:
    """Return a line (H, W) drawn with a round pen of ``width`` pixels."""
    from scipy import ndimage

    if width == 1:
        return line
    off_centre = np.arange(width) - (width - 1) / 2
    pen = off_centre[:, None] ** 2 + off_centre**2 <= (width / 2) ** 2
    return np.asarray(ndimage.binary_dilation(line, pen))
