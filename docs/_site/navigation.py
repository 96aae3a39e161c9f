"""The navigation of the site: which pages, in which groups and order.

A page that is named nowhere here is an error of the build, so nothing is there that nobody finds.
The pages themselves stay plain Markdown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from sphinx.application import Sphinx

NAVIGATION: Final = {
    "docs/index": {
        "Start": ["tutorial.md", "All on one page <../README.md>", "comparison.md", "glossary.md"],
        "How to, every day": [
            "how-to/embed.md",
            "how-to/one-transaction-with-your-tables.md",
            "how-to/test-with-the-twin.md",
            "how-to/take-back.md",
            "how-to/retries-of-your-own.md",
            "how-to/many-writers.md",
            "how-to/example.md",
        ],
        "How to, with agent frameworks": [
            "how-to/openai-agents.md",
            "how-to/langchain.md",
            "how-to/llama-index.md",
            "how-to/google-adk.md",
            "how-to/pydantic-ai.md",
            "moving/*.md",
        ],
        "How to, in operation": [
            "how-to/run-migrations.md",
            "upgrading.md",
            "how-to/command-line.md",
            "how-to/doctor.md",
            "how-to/tracing.md",
            "how-to/tls.md",
        ],
        "How to, for privacy": [
            "how-to/row-security.md",
            "how-to/erasure-and-retention.md",
            "how-to/redaction.md",
            "../SECURITY.md",
        ],
        "What holds": ["guarantees.md", "limits.md", "unit-of-work.md", "how-we-test.md"],
        "Look up": ["reference/index.rst"],
        "Inside": [
            "architecture.md",
            "decisions/README.md",
            "benchmarks.md",
            "large-tables.md",
            "../benchmarks/README.md",
        ],
        "Project": ["../CHANGELOG.md", "../CONTRIBUTING.md"],
    },
    "docs/decisions/README": {"": ["[0-9]*.md"]},
    "docs/reference/index": {
        "": [
            "store.rst",
            "service-functions.rst",
            "entities.rst",
            "errors.rst",
            "repositories.rst",
            "observers.rst",
            "frameworks/store_thread.rst",
            "frameworks/[!s]*.rst",
            "servers.rst",
            "command-line.rst",
        ]
    },
}
"""Of each page with others beneath it: their groups."""


def _pages(folder: Path, patterns: list[str]) -> list[str]:
    """Return the entries of a table of contents for what the patterns find."""
    entries: list[str] = []
    for pattern in patterns:
        title, _, path = pattern.removesuffix(">").rpartition(" <")
        up = "../" if path.startswith("../") else ""
        start = folder / up
        path = path.removeprefix(up)
        for page in sorted(start.glob(path)) if "*" in path else [start / path]:
            entry = f"{up}{page.relative_to(start).with_suffix('').as_posix()}"
            entries.append(f"{title} <{entry}>" if title else entry)
    return entries


def _add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    page = app.env.doc2path(docname)
    is_markdown = page.suffix == ".md"
    for caption, patterns in NAVIGATION.get(docname, {}).items():
        options = [":hidden:", f":caption: {caption}"] if caption else [":maxdepth: 1"]
        lines = [*options, "", *_pages(page.parent, patterns)]
        if is_markdown:
            source[0] += "\n".join(["", "```{toctree}", *lines, "```", ""])
        else:
            source[0] += "\n".join(["", ".. toctree::", *(f"   {line}" for line in lines), ""])


def setup(app: Sphinx) -> dict[str, bool]:
    """Have the navigation appended to the pages that have others beneath them."""
    app.connect("source-read", _add_navigation)
    return {"parallel_read_safe": True}
