"""How the documentation site is made: `make docs`.

Its source is the repository itself, so that a relative link that leads somewhere on a forge does so
on the site: see docs/decisions/0026-the-documentation-site.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_site"))

from docstrings import FRAMEWORKS  # noqa: E402 - it is in that folder

import conversation_store  # noqa: E402 - what is read is what is installed

project = "conversation-store"
version = release = conversation_store.__version__
html_title = f"{project} {version}"

root_doc = "docs/index"
include_patterns = ["*.md", "benchmarks/*.md", "docs/**.md", "docs/**.rst"]
exclude_patterns = [".*", "build", "dist", "src", "tests"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "navigation",
    "docstrings",
    "links",
]

nitpicky = True  # a name that leads nowhere is a warning, and so an error
nitpick_ignore_regex = [
    ("py:.*", r"(?!conversation_store\.).*"),  # what is others': there is no network to ask them
    ("py:.*", r"conversation_store\.(?:.*\.)?(?:_\w+|[A-Z]\w?|F|T_co)"),  # private; type variables
]
show_warning_types = True

myst_enable_extensions = ["html_image"]  # an <img> of a width is a picture of the site, too
myst_heading_anchors = 4

smartquotes_action = "D"  # dashes; quotes stay as they are typed
highlight_language = "text"
default_role = "literal"  # as docstrings have it: `name`
add_module_names = False
python_use_unqualified_type_names = True
python_display_short_literal_types = True
maximum_signature_line_length = 60
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autoclass_content = "both"  # what the class is, and what making one takes
# Frameworks are heavy, and none of their own names is described here.
autodoc_mock_imports = [*FRAMEWORKS]

html_theme = "furo"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to_the_start_page.html"}
templates_path = ["_site/templates"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
