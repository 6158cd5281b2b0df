"""A Vega-Lite chart as SVG that lives inside the page: no script, no request, light and dark, readable aloud.

vl-convert draws the chart in this process. The SVG is then made to fit the page: text and axes take the colour of
the text around them, the size follows the column, a title and a description name it, and points carry their numbers
as hover text (``<title>``), which works without JavaScript.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

SVG = "http://www.w3.org/2000/svg"
INK = "#010203"
"""Placeholder colour of text, axes and grid: becomes ``currentColor`` in the page, dark grey in a figure file."""
FIGURE_INK = "#222222"

NOT_XML = re.compile("[^\t\n\r\x20-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, and the two separators (U+2028, U+2029) that end a string in Vega's expressions."""

Spec = dict[str, Any]

ET.register_namespace("", SVG)


def draw(spec: Spec) -> str:
    """The chart as SVG text, in the placeholder colour; a specification with its data inside."""
    import vl_convert

    # An empty list of allowed addresses: a chart never loads anything, whatever the data says.
    return str(vl_convert.vegalite_to_svg(drawable(spec), allowed_base_urls=[]))


def inline_svg(drawing: str, *, id: str, title: str, description: str) -> str:
    """A drawn chart as an ``<svg>`` element for an HTML page; ``id`` must be unique in the page."""
    # Vega numbers its clip paths, here and again in the browser: each drawing keeps to names of its own.
    own = re.sub(r'(id="|url\(#)(clip\d)', rf"\g<1>{id}-\g<2>", drawing)
    root = ET.fromstring(own.replace(INK, "currentColor"))
    for name in ("width", "height", "class"):  # the page sets the size, the viewBox keeps the shape
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-labelledby": f"{id}-title {id}-text"})
    for element in root[0].iter():  # one image: its parts carry no roles of their own, only the points a hover text
        label, role, _ = (element.attrib.pop(name, None) for name in ("aria-label", "aria-roledescription", "role"))
        if label and role == "point":
            ET.SubElement(element, f"{{{SVG}}}title").text = label
    heading, text = ET.Element(f"{{{SVG}}}title", id=f"{id}-title"), ET.Element(f"{{{SVG}}}desc", id=f"{id}-text")
    heading.text, text.text = NOT_XML.sub("", title), NOT_XML.sub("", description)
    root[:0] = [heading, text]
    return ET.tostring(root, encoding="unicode")


def figure_svg(drawing: str) -> bytes:
    """A drawn chart as a file of its own, on white."""
    root = ET.fromstring(drawing.replace(INK, FIGURE_INK))
    root.insert(0, ET.Element(f"{{{SVG}}}rect", width="100%", height="100%", fill="white"))
    return ET.tostring(root, encoding="utf-8")


def figure_png(drawing: str, *, scale: float = 2.0) -> bytes:
    """A drawn chart as PNG, on white, ``scale`` pixels per point."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(figure_svg(drawing).decode(), scale=scale))


def drawable(part: Any) -> Any:
    """The specification without characters that drawing aborts on: names in it become SVG and parts of expressions."""
    if isinstance(part, dict):
        return {key: drawable(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [drawable(value) for value in part]
    return NOT_XML.sub("", part) if isinstance(part, str) else part
