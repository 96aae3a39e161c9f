"""Check the documentation site that was built: `make docs`.

The reference describes every public name; the navigation leads to every page; every link leads
somewhere; and nothing is fetched from elsewhere. What is public is read from the package itself,
not from the tool that made the pages.
"""

from __future__ import annotations

import ast
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from html.parser import HTMLParser
from importlib.metadata import metadata
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import conversation_store
from conversation_store.entrypoints.cli import PROGRAM, commands

PACKAGE: Final = Path(conversation_store.__file__).parent
NAME: Final = conversation_store.__name__

START: Final = "docs/index.html"
MADE_BY_THE_TOOL: Final = {"index.html", "genindex.html", "py-modindex.html", "search.html", START}
"""Pages that are not in the navigation: the way to the start, it itself, and indexes."""

PUBLIC_ELSEWHERE: Final = {
    "adapters.store_thread": {"Store", "StoreThread"},
    "adapters.otel": {"OpenTelemetryObserver"},
    "adapters.postgres.embedded": {"EmbeddedPostgres", "EmbeddedPostgresError", "find_binaries"},
    "adapters.postgres.migrate": {"migration_sql"},
}
"""What hosts import besides the names of the package, and besides what is made for frameworks."""
FIXTURES: Final = "entrypoints.pytest_plugin"

_LOADED_BY: Final = {"script": "src", "img": "src", "iframe": "src", "source": "srcset"}
_LOADED_RELATIONS: Final = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}
_FETCHED: Final = re.compile(
    r"""(?:@import\s+|url\(\s*)["']?((?:https?:)?//[^"')\s]+)"""  # of a style
    r"""|(?:xlink:href|\bhref|\bsrc)=["']((?:https?:)?//[^"']+)""",  # of a picture
    re.IGNORECASE,
)
_UNDESCRIBED: Final = re.compile(
    r'<dt class="sig [^>]*id="([^"]+)">(?:(?!<dt).)*?</dt>\s*<dd></dd>', re.DOTALL
)
_ENTRY: Final = re.compile(r"^(.+?) (?:py|std):\w+ ", re.MULTILINE)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.navigation: list[str] = []
        self.loaded: list[str] = []
        self._depth_of_navigation = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "div" and (self._depth_of_navigation or given.get("class") == "sidebar-tree"):
            self._depth_of_navigation += 1
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            if self._depth_of_navigation:
                self.navigation.append(given["href"])
        elif tag == "link" and _LOADED_RELATIONS.intersection(given.get("rel", "").split()):
            self.loaded.append(given.get("href", ""))
        elif tag in _LOADED_BY and given.get(_LOADED_BY[tag]):
            self.loaded.append(given[_LOADED_BY[tag]])

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth_of_navigation:
            self._depth_of_navigation -= 1


class Link(NamedTuple):
    """Where a link leads, within the site."""

    file: Path
    anchor: str


class Page:
    """One page of the site."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.text = file.read_text("utf-8")
        self._read = _Reader()
        self._read.feed(self.text)

    @property
    def ids(self) -> set[str]:
        """What a link can lead to within the page."""
        return self._read.ids

    @property
    def links(self) -> Iterator[tuple[str, Link]]:
        """The links that stay within the site, as they are written and where they lead."""
        return self._within(self._read.links)

    @property
    def navigation(self) -> Iterator[tuple[str, Link]]:
        """The links of the navigation beside the page."""
        return self._within(self._read.navigation)

    @property
    def loaded(self) -> list[str]:
        """The addresses of scripts, styles and pictures."""
        return self._read.loaded

    def _within(self, links: Iterable[str]) -> Iterator[tuple[str, Link]]:
        for link in links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            file = (self.file.parent / path).resolve() if path else self.file
            yield link, Link(file, unquote(parts.fragment))


class Site:
    """The folder that was built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @cached_property
    def pages(self) -> dict[str, Page]:
        """All pages, by their path within the site."""
        found = sorted(self.folder.rglob("*.html"))
        return {self.path(file): Page(file) for file in found if not self._is_copied(file)}

    @cached_property
    def described(self) -> set[str]:
        """The names that the site describes, from its inventory."""
        _, _, entries = (self.folder / "objects.inv").read_bytes().partition(b"zlib.\n")
        return set(_ENTRY.findall(zlib.decompress(entries).decode()))

    def path(self, file: Path) -> str:
        """Return the path of a file within the site."""
        return file.relative_to(self.folder).as_posix()

    def _is_copied(self, file: Path) -> bool:
        return self.path(file).startswith("_")


# What there is to describe ------------------------------------------------------------------------


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _members(cls: type) -> Iterator[set[str]]:
    """Give each public member of a class under all names that it may be described by."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith(NAME)]
    for base in ours:
        for member in {*vars(base), *vars(base).get("__annotations__", {})}:
            if _is_public(member):
                yield {f"{NAME}.{heir.__name__}.{member}" for heir in ours}


def names_of_package() -> Iterator[set[str]]:
    """Give each public name of the package, and each member of its classes."""
    for name in conversation_store.__all__:
        yield {f"{NAME}.{name}"}
        value = getattr(conversation_store, name)
        if isinstance(value, type):
            yield from _members(value)


def _names(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


def _is_fixture(node: ast.stmt) -> bool:
    return bool(getattr(node, "decorator_list", ()))  # what is not decorated is no fixture


def file_of(module: str) -> Path:
    """Return the file of a module of the package."""
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def names_of_module(module: str, wanted: set[str] | None = None) -> Iterator[set[str]]:
    """Give the public names of a module and their members, as they stand in its text.

    So what is made for a framework is found where that is not installed.
    """
    for name, node in _names(ast.parse(file_of(module).read_text("utf-8")).body):
        is_wanted = _is_fixture(node) if module == FIXTURES else wanted is None or name in wanted
        if not is_wanted or not _is_public(name):
            continue
        full = f"{NAME}.{module}.{name}"
        yield {full}
        if isinstance(node, ast.ClassDef):
            yield from (
                {f"{full}.{member}"} for member, _ in _names(node.body) if _is_public(member)
            )


def modules_of_frameworks() -> Iterator[str]:
    """Give the modules that hosts import: named as an extra, or used by no other beside them."""
    extras = {extra.replace("-", "_") for extra in metadata(PROGRAM).get_all("Provides-Extra", [])}
    files = [*(PACKAGE / "adapters").glob("[a-z]*.py")]
    texts = {file.stem: file.read_text("utf-8") for file in files}
    for name in texts:
        used = re.compile(rf"^from \.(?:{name} import| import {name}\b)", re.MULTILINE)
        if name in extras or not any(map(used.search, texts.values())):
            yield f"adapters.{name}"


def names_to_describe() -> Iterator[set[str]]:
    """Give all that a host may import, and what a command line may say."""
    yield from names_of_package()
    for module in sorted({*modules_of_frameworks(), *PUBLIC_ELSEWHERE, FIXTURES}):
        yield from names_of_module(module, PUBLIC_ELSEWHERE.get(module))
    for name, command in commands.commands.items():
        for parameter in command.params:
            for option in parameter.opts:
                yield {f"{PROGRAM}-{name}.{shown}" for shown in (option, option.upper())}


# What is wrong with a site ------------------------------------------------------------------------


def not_described(site: Site, names: Iterable[set[str]]) -> Iterator[str]:
    """Tell the names that have no entry."""
    for alternatives in names:
        if not alternatives & site.described:
            yield f"{min(alternatives)} is not in the reference"


def described_by_nothing(site: Site) -> Iterator[str]:
    """Tell the entries that say nothing."""
    for path, page in site.pages.items():
        yield from (f"{path}: {name} has no docstring" for name in _UNDESCRIBED.findall(page.text))


def not_reached(site: Site) -> Iterator[str]:
    """Tell the pages to which the navigation does not lead."""
    reached = {link.file for _, link in site.pages[START].navigation}
    for path, page in site.pages.items():
        if path not in MADE_BY_THE_TOOL and page.file not in reached:
            yield f"{path} is not in the navigation"


def lost_links(site: Site) -> Iterator[str]:
    """Tell the links that lead nowhere."""
    by_file = {page.file: page for page in site.pages.values()}
    for path, page in site.pages.items():
        for written, link in page.links:
            target = by_file.get(link.file)
            is_there = link.file.is_file()
            if target is not None and link.anchor:
                is_there = link.anchor in target.ids
            if not is_there:
                yield f"{path}: {written} leads nowhere"


def fetched_from_elsewhere(site: Site) -> Iterator[str]:
    """Tell what a page has a browser fetch that is not a file of the site."""
    for path, page in site.pages.items():
        for address in page.loaded:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.netloc or not (page.file.parent / unquote(parts.path)).is_file():
                yield f"{path} loads {address}"
    for file in sorted({*site.folder.rglob("*.css"), *site.folder.rglob("*.svg")}):
        for style, picture in _FETCHED.findall(file.read_text("utf-8")):
            yield f"{site.path(file)} loads {style or picture}"


def problems(site: Site) -> list[str]:
    """Return all that is wrong."""
    return [
        *not_described(site, names_to_describe()),
        *described_by_nothing(site),
        *not_reached(site),
        *lost_links(site),
        *fetched_from_elsewhere(site),
    ]


if __name__ == "__main__":
    the_site = Site(Path(sys.argv[1]))
    found = problems(the_site)
    print(*found, sep="\n", end="\n" if found else "")
    if found:
        sys.exit(1)
    print(f"{len(the_site.pages)} pages, {len(the_site.described)} entries:", end=" ")
    print(Path(sys.argv[1], "index.html"))
