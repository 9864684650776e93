"""The documentation's site, which `make docs` builds.

The source folder is the root of the repository, so that README.md and its like are pages too, and
a relative link is right in the repository and on the site.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

project = "layernorm"
author = project_copyright = "The layernorm authors"
(version,) = re.findall(r'= "(.+)"', (ROOT / "src" / "layernorm" / "_version.py").read_text())
release = version

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
extensions += ["api", "chinese", "notebooks", "sources"]  # in docs/site/

root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "examples/lesson/*.ipynb"]
# Folders to look for no pages in.
exclude_patterns = [".*", "benchmarks", "build", "dist", "native", "src", "tests"]

myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
smartquotes = False  # names and values stand in the text too

# MathJax as one file, with letters as curves: it looks the same on every machine, with no network.
(_mathjax,) = find_spec("sphinx-mathjax-offline").submodule_search_locations
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu loads more files

html_theme = "furo"
html_title = "layernorm"
html_static_path = ["site/static", f"{_mathjax}/static/mathjax/{mathjax_path}"]
html_css_files = ["site.css"]
html_logo = html_favicon = "site/static/logo.svg"
html_copy_source = False
html_use_index = html_domain_indices = False
templates_path = ["site/templates"]
html_additional_pages = {"index": "redirect.html"}
pygments_dark_style = "github-dark"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def setup(app: Sphinx) -> None:
    """From disk, search without summaries: a browser lets no page read another there."""
    script = 'DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";'
    app.add_js_file(None, body=script)
