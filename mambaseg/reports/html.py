"""HTML from Python values: everything that is not already an element is escaped."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

VOID_TAGS = frozenset({"img", "meta", "br"})


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already; made by this module and by chart drawing only."""

    text: str


Content = Markup | str | int | float


def element(tag: str, *content: Content, **attributes: str) -> Markup:
    """Return ``<tag attributes>content</tag>``.

    Args:
        tag: Name of the element.
        *content: Markup as it is; anything else escaped.
        **attributes: Escaped values; ``class_`` is ``class``, and ``_`` within a name becomes ``-``.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value, quote=True)}"' for name, value in attributes.items()
    )
    if tag in VOID_TAGS:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(content).text}</{tag}>")


def join(content: Iterable[Content]) -> Markup:
    """Return the contents one after another."""
    return Markup("".join(part.text if isinstance(part, Markup) else escape(str(part)) for part in content))


def table(header: Sequence[Content], rows: Iterable[Sequence[Content]], caption: str = "", texts: int = 1) -> Markup:
    """Return a table that scrolls by itself where the page is too narrow.

    Args:
        header: Titles of the columns.
        rows: As many cells each.
        caption: What the table shows; it stands above and does not scroll with it.
        texts: How many columns, from the left, are texts; the others are numbers.
    """
    head = element("tr", *(element("th", title, scope="col") for title in header))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    whole = element("table", element("thead", head), element("tbody", *body), class_=f"texts{texts}")
    above = [element("p", caption, class_="caption")] if caption else []
    return join([*above, element("div", whole, class_="scroll")])


def facts(values: Mapping[str, object]) -> Markup:
    """Return a list of names and values; a mapping within it becomes ``outer.inner`` names."""
    items: list[Markup] = []
    for name, value in flatten(values).items():
        items += [element("dt", name), element("dd", "–" if value is None else str(value))]
    return element("dl", *items)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one, with dotted names."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def folded(summary: str, *content: Content) -> Markup:
    """Return content behind a line that opens it."""
    return element("details", element("summary", summary), *content)


def picture(path: Path, description: str) -> Markup:
    """Return a PNG file as an element that holds the picture itself."""
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return element("img", src=f"data:image/png;base64,{encoded}", alt=description)


def page(title: str, style: str, *content: Content) -> str:
    """Return a whole HTML document that needs nothing from outside and may load nothing from there.

    Args:
        title: Title of the document.
        style: Its CSS.
        *content: The body.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    document = element("html", head, element("body", *content), lang="en")
    return f"<!doctype html>\n{document.text}\n"
