"""Colours that stay apart for colour-blind readers (Okabe and Ito, https://jfly.uni-koeln.de/color/)."""

Rgb = tuple[int, int, int]

OKABE_ITO: tuple[Rgb, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def class_colour(class_index: int) -> Rgb:
    """Return the colour of a foreground class, 1 and up; after seven classes the colours return half way to white.

    Args:
        class_index: Index of the class; the background, 0, has no colour of its own.
    """
    turn, place = divmod(class_index - 1, len(OKABE_ITO))
    red, green, blue = OKABE_ITO[place]
    return (red, green, blue) if turn % 2 == 0 else ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2)


def hex_colour(index: int) -> str:
    """Return the colour of the ``index``-th line of a chart, as ``#rrggbb``.

    Yellow is skipped: a thin line of it cannot be seen on white.
    """
    lines = [OKABE_ITO[place] for place in (4, 0, 2, 5, 1, 6)]
    return "#{:02x}{:02x}{:02x}".format(*lines[index % len(lines)])
