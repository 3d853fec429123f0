"""A report page taken apart by a parser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = ("meta", "link", "img", "br")


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Page(HTMLParser):
    """Every element of a page with all text inside it; a tag that is not closed is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.html = path.read_text("utf-8")
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].name == tag, f"</{tag}> at {self.getpos()}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def named(self, name: str) -> list[Element]:
        return [element for element in self.elements if element.name == name]

    def with_class(self, name: str) -> list[Element]:
        return [e for e in self.elements if name in e.attributes.get("class", "").split()]

    def by_id(self, key: str) -> Element:
        (found,) = (element for element in self.elements if element.attributes.get("id") == key)
        return found

    @property
    def text(self) -> str:
        return " ".join(self.named("body")[0].text.split())

    def table(self, key: str) -> list[list[str]]:
        """The cells of the table in the figure with this id."""
        start = self.elements.index(self.by_id(key))
        rows: list[list[str]] = []
        for element in self.elements[start + 1 :]:
            if element.name in ("figure", "section", "footer"):
                break
            if element.name == "tr":
                rows.append([])
            elif element.name in ("th", "td") and rows:
                rows[-1].append(element.text)
        return rows
