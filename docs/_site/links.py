"""Links to folders: a folder that has a README is that page, any other has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from docutils.nodes import document
    from sphinx.application import Sphinx


def _resolve_folders(app: Sphinx, doctree: document) -> None:
    for link in list(doctree.findall(pending_xref)):
        if link["reftype"] != "myst" or link["refdomain"]:
            continue
        relative, absolute = app.env.relfn2path(link["reftarget"], app.env.docname)
        readme = f"{relative.rstrip('/')}/README"
        if readme in app.env.found_docs:
            link["refdomain"], link["reftarget"], link["reftargetid"] = "doc", readme, None
        elif (app.srcdir / absolute).is_dir():
            link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at the links of each page as it is read."""
    app.connect("doctree-read", _resolve_folders)
    return {"parallel_read_safe": True}
