"""The directive `api`, which documents a module from its source, without an import.

    ```{api} layernorm.numpy
    ```

griffe reads the source: a signature shows the types as they are written (`npt.ArrayLike`, where an
import would show the union of a dozen types behind it), and no framework has to be there.
"""

import griffe
import sources
from docstrings import to_markdown
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_SOURCE = sources.ROOT / "src" / "layernorm"
_MODULES = griffe.load(_SOURCE, allow_inspection=False).modules_collection
_DIRECTIVES = {"function": "py:function", "class": "py:class", "attribute": "py:data"}


def public_names(module: griffe.Module) -> dict[str, griffe.Object]:
    """Return the public names, except type aliases, and classes of ours that functions return."""
    members = [module[name] for name in module.exports or module.members]
    public = [each for each in members if each.is_public]
    names = [each for each in public if str(getattr(each, "annotation", "")) != "TypeAlias"]
    listed = [each for kind in _DIRECTIVES for each in names if each.kind.value == kind]
    results = [each.returns for each in listed if each.is_function]
    paths = [each.canonical_path for each in results if isinstance(each, griffe.ExprName)]
    ours = [_MODULES[path] for path in paths if path.startswith("layernorm.")]
    return {each.name: each for each in listed + [each for each in ours if each.is_class]}


def docstring(each: griffe.Object) -> str:
    """Return the docstring as Markdown."""
    return to_markdown(each.docstring.value) if each.docstring else ""


def signature(each: griffe.Function | griffe.Class) -> str:
    """Return `name(arguments) -> type`; the arguments of a named tuple are its fields."""
    if each.is_function:
        return each.signature(return_type=True)
    if "NamedTuple" in map(str, each.bases):
        fields = [f"{name}: {field.annotation}" for name, field in each.attributes.items()]
        return f"{each.name}({', '.join(fields)})"
    return each.signature() or each.name


def described(each: griffe.Object, directive: str) -> str:
    """Return a directive that describes a name, and in it those of a class's methods."""
    if each.is_attribute:
        heading, body = each.name, f"```python\n{each.source}\n```"
    else:
        heading, body = signature(each), docstring(each)
    if each.is_class:
        for name, method in each.all_members.items():
            if method.is_function and method.docstring and (name[0] != "_" or name == "__call__"):
                body += "\n\n" + described(method, "py:method")
    fence = "`" * (9 if each.is_class else 7)
    return f"{fence}{{{directive}}} {heading}\n\n{body}\n{fence}\n"


def summary(names: dict[str, griffe.Object]) -> str:
    """Return a table of the names and the first lines of their docstrings."""
    lines = {name: docstring(each).partition("\n\n")[0] for name, each in names.items()}
    cells = {name: line.replace("\n", " ").replace("|", "\\|") for name, line in lines.items()}
    rows = [f"| {{py:obj}}`{name}` | {cell} |" for name, cell in cells.items() if cell]
    return "\n".join(["| name | summary |", "|---|---|", *rows]) if rows else ""


class Api(SphinxDirective):
    """List a module's public names, then describe each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build Markdown, parse it, and add the links to the source."""
        module = _MODULES[self.arguments[0]]
        names = public_names(module)
        texts = [f"```{{py:module}} {module.path}\n```", docstring(module), summary(names)]
        texts += [described(each, _DIRECTIVES[each.kind.value]) for each in names.values()]
        result = self.parse_text_to_nodes("\n\n".join(texts))
        for node in result:
            for heading in node.findall(addnodes.desc_signature):
                name, *method = heading["fullname"].split(".")
                self.add_source_link(heading, names[name][method] if method else names[name])
        return result

    def add_source_link(self, heading: addnodes.desc_signature, each: griffe.Object) -> None:
        """Append [source] to a signature."""
        file = each.filepath.relative_to(sources.ROOT).as_posix()
        link = sources.uri(self.env.app, self.env.docname, file, each.lineno)
        text = nodes.inline("", "[source]", classes=["viewcode-link"])
        heading += nodes.reference("", "", text, refuri=link, internal=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("api", Api)
    return {"parallel_read_safe": False}
