"""A page as tests read it: tags with attributes, texts by table and by matrix cell; unbalanced tags fail."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """Collects what a page says; script and style are kept apart from its text.

    Attributes:
        tables: id -> rows of cell texts, of the tables that have an id.
        cells: (row, column, layer) -> text of a cell of the matrix in one of its views.
        scripts: (attributes, source) of every script.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, Attributes]] = []
        self.open: list[tuple[str, Attributes]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.cells: dict[tuple[int, int, str], str] = {}
        self.scripts: list[tuple[Attributes, str]] = []
        self.text = self.style = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {tag} {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "tr" and self._table is not None:
            self._table.append([])
        if tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inner = self.open[-1][0] if self.open else ""
        if inner == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        if inner == "style":
            self.style += data
            return
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] += data
        layer = next((a["data-layer"] for _, a in self.open if "data-layer" in a), None)
        if layer is not None:
            cell = next(a for tag, a in reversed(self.open) if tag == "td")
            key = int(cell["data-row"] or 0), int(cell["data-column"] or 0), layer
            self.cells[key] = f"{self.cells.get(key, '')} {data.strip()}".strip()

    @property
    def _table(self) -> list[list[str]] | None:
        found = [attributes for tag, attributes in self.open if tag == "table"]
        name = found[-1].get("id") if found else None
        return None if name is None else self.tables.setdefault(name, [])

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]

    def charts(self) -> list[dict[str, Any]]:
        """What the browser is handed of every chart."""
        return [json.loads(source) for attributes, source in self.scripts if attributes]


def assert_self_contained(text: str) -> Page:
    """Nothing is loaded, nothing but the page's own two scripts runs, links lead into the page or to its figures."""
    page = Page(text)
    assert not {"iframe", "object", "embed", "link", "img", "base", "audio", "video"} & {tag for tag, _ in page.tags}
    assert not {key for _, attributes in page.tags for key in attributes if key.startswith("on")}
    assert not [name for name in ("src", "srcset", "xlink:href", "action", "data") if page.attributes(name)]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for link in page.attributes("href"):
        assert (link[0] == "#" and link[1:] in ids) or re.fullmatch(
            r"(figures|[\w./%-]+)/[\w.-]+\.(svg|png|csv|html)", link
        )
    # Only the namespace is an address; a request could also come out of CSS.
    assert set(page.attributes("xmlns")) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"@import|url\(|https?:", " ".join([page.style, *page.attributes("style")]))
    assert not re.findall(r"url\((?!#)", " ".join(page.attributes("fill") + page.attributes("clip-path")))
    runs = [source for attributes, source in page.scripts if not attributes]
    policy = next(attributes for tag, attributes in page.tags if attributes.get("http-equiv"))["content"] or ""
    digests = {base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in runs}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == digests
    assert len(runs) == 2
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    for attributes, source in page.scripts:
        assert not attributes or (
            attributes == {"type": "application/json"} and not set(source) & set("<>&\u2028\u2029")
        )
    return page
