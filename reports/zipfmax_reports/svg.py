"""Matplotlib figures as accessible SVG: titled, described, with unique ids, and in the page's own colours."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure as Drawing

from zipfmax_reports.style import LIGHT

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def inline_svg(drawing: Drawing, name: str, title: str, description: str) -> str:
    """The figure, drawn in the light theme, as SVG to stand in a page.

    Its ids start with `name`, so several figures share a page; its colours become the page's custom
    properties (`var(--ink)`, `var(--series-1)`, ...), so it follows the page's scheme; a title and a
    description are read out by screen readers.
    """
    root = ElementTree.fromstring(_text(drawing, text_as="none"))
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    _rename_ids(root, name)
    _describe(root, name, title, description)
    width = float(root.attrib["viewBox"].split()[2])
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("style", f"max-width: {width:.0f}pt")
    return _follow_page(ElementTree.tostring(root, encoding="unicode"))


def standalone_svg(drawing: Drawing, name: str, title: str, description: str) -> str:
    """The figure as the text of an SVG file, with its own colours, a title and a description."""
    root = ElementTree.fromstring(_text(drawing, text_as="path"))
    _describe(root, name, title, description)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _text(drawing: Drawing, text_as: str) -> str:
    """SVG text: "none" leaves text as text in the reader's font, "path" draws its outlines."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "zipfmax", "svg.fonttype": text_as}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    return buffer.getvalue()


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")


def _follow_page(svg: str) -> str:
    properties = {
        LIGHT.surface: "surface",
        LIGHT.ink: "ink",
        LIGHT.muted: "muted",
        LIGHT.grid: "grid",
        **{colour: f"series-{index}" for index, colour in enumerate(LIGHT.series, start=1)},
    }
    for colour, name in properties.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
