"""The picture that shows what every student made of one slice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mambaseg.reports.palette import Rgb, class_colour

UNKNOWN = 255
TILE_PIXELS = 288
"""Longer side of a tile; smaller slices are enlarged so that outlines can be told apart."""
GAP = 8
TITLE_HEIGHT = 24
LEGEND_ROW = 22
ZOOM_MARGIN = 1.4
"""Side of the shown region over the extent of the foreground."""
SMALLEST_REGION = 64
FILL_OPACITY = 0.35
PAPER = (255, 255, 255)
INK = (25, 25, 25)
TRUTH_OUTLINE = (255, 255, 255)
DISAGREEMENT = (255, 96, 0)

IntArray = NDArray[np.integer]
Pixels = NDArray[np.float32]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Tile:
    title: str
    pixels: Pixels


@dataclass(frozen=True)
class _Entry:
    name: str
    colour: Rgb


def prediction_panel(
    image: NDArray[np.floating],
    label: IntArray | None,
    predictions: Mapping[str, IntArray],
    class_names: Sequence[str],
    ensemble: str = "ensemble",
    zoom: bool = True,
) -> Image.Image:
    """Draw a slice, its truth, each prediction on it, and where the students disagree.

    Classes are translucent fills with solid outlines; over each prediction a thin white line gives the truth. Pixels
    whose label is unknown are hatched.

    Args:
        image: (H, W), any range; it is stretched between its extremes.
        label: (H, W) classes, 255 where unknown, or None where there is no truth.
        predictions: (H, W) classes by predictor.
        class_names: Name of each class, background first.
        ensemble: The predictor that is no student, so has no voice in the disagreement.
        zoom: Show only the part around everything that truth or any prediction calls foreground.

    Returns:
        An RGB picture, one row of tiles over a legend.
    """
    if zoom:
        region = foreground_region([*predictions.values(), *([] if label is None else [label])])
        image, label = image[region], None if label is None else label[region]
        predictions = {name: prediction[region] for name, prediction in predictions.items()}
    grey = _enlarge_image(image)
    size = (grey.shape[1], grey.shape[0])
    truth = None if label is None else _enlarge_classes(label, size)
    tiles = [_Tile("image", _rgb(grey))]
    if truth is not None:
        tiles.append(_Tile("truth", _hatch_unknown(_paint_classes(grey, truth), truth)))
    for name, prediction in predictions.items():
        painted = _paint_classes(grey, _enlarge_classes(prediction, size))
        tiles.append(_Tile(name, painted if truth is None else _outline_truth(painted, truth)))
    students = [prediction for name, prediction in predictions.items() if name != ensemble]
    if len(students) > 1:
        tiles.append(_disagreement_tile(grey, np.stack(students), size))
    return _assemble(tiles, _legend(class_names, truth is not None, len(students) > 1))


def foreground_region(maps: Sequence[IntArray]) -> tuple[slice, slice]:
    """Return a square around the foreground of all maps, with a margin; the whole slice where there is none.

    Args:
        maps: (H, W) classes each, 255 where unknown.
    """
    height, width = maps[0].shape
    foreground = np.any([(classes > 0) & (classes != UNKNOWN) for classes in maps], axis=0)
    if not foreground.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.nonzero(foreground)
    side = max(SMALLEST_REGION, round(ZOOM_MARGIN * max(np.ptp(rows) + 1, np.ptp(columns) + 1)))
    middle_row, middle_column = (int(places.min() + places.max()) // 2 for places in (rows, columns))
    return _centred(middle_row, side, height), _centred(middle_column, side, width)


def _centred(centre: int, side: int, size: int) -> slice:
    start = max(0, min(centre - side // 2, size - side))
    return slice(start, min(size, start + side))


def disagreement(students: IntArray) -> NDArray[np.float32]:
    """Return, for every pixel, the share of students that did not vote for its most frequent class.

    Args:
        students: (S, H, W) classes of S students.

    Returns:
        (H, W), 0 where all agree.
    """
    votes = np.stack([(students == c).sum(axis=0) for c in np.unique(students)])
    share: NDArray[np.float32] = (1 - votes.max(axis=0) / len(students)).astype(np.float32)
    return share


def disputed_share(students: IntArray) -> float:
    """Return the share of the pixels that any student calls foreground on which the students disagree; 0 where none.

    Args:
        students: (S, H, W) classes of S students.
    """
    foreground = (students > 0).any(axis=0)
    return float((disagreement(students) > 0).sum() / max(1, foreground.sum()))


def _disagreement_tile(grey: Pixels, students: IntArray, size: tuple[int, int]) -> _Tile:
    share = disagreement(students)
    levels = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.NEAREST))
    # Half of the voters against the rest is as far apart as they can be, or nearly; it gets the full colour.
    opacity = np.clip(levels * 2, 0, 1)[..., None]
    pixels = _rgb(grey * 0.6) * (1 - opacity) + np.asarray(DISAGREEMENT, np.float32) * opacity
    return _Tile(f"disagreement {disputed_share(students):.0%}", pixels)


def _enlarge_image(image: NDArray[np.floating]) -> Pixels:
    values = np.asarray(image, np.float32)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    factor = TILE_PIXELS / max(values.shape)
    height, width = (max(1, round(side * factor)) for side in values.shape)
    enlarged = Image.fromarray(scaled).resize((width, height), Image.Resampling.BICUBIC)
    stretched: Pixels = np.asarray(enlarged, dtype=np.float32).clip(0, 1) * np.float32(255)
    return stretched


def _enlarge_classes(classes: IntArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(classes.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))


def _rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


def _paint_classes(grey: Pixels, classes: NDArray[np.uint8]) -> Pixels:
    pixels = _rgb(grey)
    for class_index in np.unique(classes):
        if class_index in (0, UNKNOWN):
            continue
        colour = np.asarray(class_colour(int(class_index)), np.float32)
        region = classes == class_index
        pixels[region] = pixels[region] * (1 - FILL_OPACITY) + colour * FILL_OPACITY
        pixels[_outline(region, 2)] = colour
    return pixels


def _outline_truth(pixels: Pixels, truth: NDArray[np.uint8]) -> Pixels:
    for class_index in np.unique(truth):
        if class_index not in (0, UNKNOWN):
            pixels[_outline(truth == class_index, 1)] = TRUTH_OUTLINE
    return pixels


def _outline(region: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels of ``region`` (H, W) nearer than ``width`` to its border."""
    inner = region
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _hatch_unknown(pixels: Pixels, classes: NDArray[np.uint8]) -> Pixels:
    rows, columns = np.indices(classes.shape)
    stripes = (classes == UNKNOWN) & ((rows + columns) % 12 < 2)
    pixels[stripes] = pixels[stripes] * 0.5 + 90
    return pixels


def _legend(class_names: Sequence[str], has_truth: bool, has_disagreement: bool) -> list[_Entry]:
    entries = [_Entry(name, class_colour(index)) for index, name in enumerate(class_names) if index > 0]
    if has_truth:
        entries.append(_Entry("outline of the truth", TRUTH_OUTLINE))
    if has_disagreement:
        entries.append(_Entry("students disagree (share of the pixels any calls foreground)", DISAGREEMENT))
    return entries


def _assemble(tiles: Sequence[_Tile], legend: Sequence[_Entry]) -> Image.Image:
    tile_height, tile_width = tiles[0].pixels.shape[:2]
    width = len(tiles) * (tile_width + GAP) + GAP
    font = ImageFont.load_default(14)
    rows = _wrap(legend, font, width)
    page = Image.new("RGB", (width, TITLE_HEIGHT + tile_height + GAP + len(rows) * LEGEND_ROW), PAPER)
    draw = ImageDraw.Draw(page)
    for place, tile in enumerate(tiles):
        left = GAP + place * (tile_width + GAP)
        draw.text((left, 4), _shorten(tile.title, font, tile_width), fill=INK, font=font)
        page.paste(Image.fromarray(np.clip(tile.pixels, 0, 255).astype(np.uint8)), (left, TITLE_HEIGHT))
    for place, row in enumerate(rows):
        _draw_legend_row(draw, row, font, TITLE_HEIGHT + tile_height + GAP + place * LEGEND_ROW)
    return page


def _wrap(legend: Sequence[_Entry], font: _Font, width: int) -> list[list[_Entry]]:
    rows: list[list[_Entry]] = [[]]
    used = GAP
    for entry in legend:
        needed = _entry_width(entry, font)
        if rows[-1] and used + needed > width:
            rows.append([])
            used = GAP
        rows[-1].append(entry)
        used += needed
    return rows


def _draw_legend_row(draw: ImageDraw.ImageDraw, row: Sequence[_Entry], font: _Font, top: int) -> None:
    left = GAP
    for entry in row:
        draw.rectangle((left, top, left + 14, top + 14), fill=entry.colour, outline=INK)
        draw.text((left + 20, top - 1), entry.name, fill=INK, font=font)
        left += _entry_width(entry, font)


def _entry_width(entry: _Entry, font: _Font) -> int:
    return 38 + math.ceil(font.getlength(entry.name))


def _shorten(text: str, font: _Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
