"""The page of run folders, and what a browser reads in it."""

from html.parser import HTMLParser
from pathlib import Path

from neuroada.report.html.page import report_page
from neuroada.report.html.run import read_runs


class Parsed(HTMLParser):
    """A page as a browser reads it: elements in order with the names of their attributes, texts, and values."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.unseen = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.unseen = tag in ("script", "style")
        if tag != "wbr":
            self.elements.append((tag, tuple(sorted(name for name, _ in attributes))))
            self.values += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        self.unseen = False

    def handle_data(self, data):
        if not self.unseen:
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


def page_of(*folders: Path) -> str:
    return report_page(read_runs(folders))


def words(page: str) -> str:
    return " ".join(Parsed(page).text.split())
