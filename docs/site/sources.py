"""A page of highlighted code for each source file that a page links to.

Markdown links to files of the repository, as ../src/layernorm/spec.py, lead to these pages; links
to folders, which a site has no page for, become text.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).parents[2]

_LANGUAGES = {".py": "python", ".h": "cpp", ".cc": "cpp", ".toml": "toml"}
_linked: set[str] = set()


def uri(app: Sphinx, page: str, file: str, line: int | None = None) -> str:
    """Return a relative link from a page to a line of a source file, which then gets a page."""
    _linked.add(file)
    builder = app.builder
    link = relative_uri(builder.get_target_uri(page), builder.get_target_uri(file))
    return link if line is None else f"{link}#line-{line}"


class LinksToSources(SphinxTransform):
    """Let links to source files lead to their pages."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        """Replace what MyST makes of such links: downloads, or references that it does not find."""
        here = (ROOT / self.env.docname).parent
        for node in [*self.document.findall(addnodes.download_reference)]:
            file = (here / node["reftarget"]).resolve().relative_to(ROOT).as_posix()
            link = uri(self.app, self.env.docname, file)
            node.replace_self(nodes.reference("", "", *node.children, refuri=link, internal=True))
        for node in [*self.document.findall(addnodes.pending_xref)]:
            if node["reftype"] == "myst" and (here / node["reftarget"]).is_dir():
                node.replace_self(node.children)


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the pages of all files that are linked to."""
    highlighter = PygmentsBridge("html", app.config.pygments_style or "default")
    for file in sorted(_linked):
        path = ROOT / file
        code = highlighter.highlight_block(
            path.read_text(), _LANGUAGES.get(path.suffix, "text"), lineanchors="line"
        )
        body = f'<h1><code class="file">{file}</code></h1>{code}'
        yield file, {"title": file, "body": body}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the transform and the pages."""
    app.add_transform(LinksToSources)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False}
