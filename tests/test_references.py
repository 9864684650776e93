"""What documents and comments refer to exists: tests, files, and sections by their headings."""

import re
from pathlib import Path

import pytest

import layernorm

ROOT = Path(__file__).parents[1]
FOLDERS = {"docs": ".md", "src": ".py", "tests": ".py", "native": (".h", ".cc")}
TEXTS = {
    path: path.read_text()
    for folder, suffixes in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*"))
    if path.name.endswith(suffixes)
} | {path: path.read_text() for path in sorted(ROOT.glob("*.md"))}


def test_the_specification_names_tests_that_there_are() -> None:
    words = re.findall(r"`([^`\n]+)`", TEXTS[ROOT / "docs" / "specification.md"])
    files = {word for word in words if word.startswith("tests/")}
    assert [each for each in files if not (ROOT / each).exists()] == []
    sources = "\n".join(text for path, text in TEXTS.items() if path.suffix == ".py")
    there = set(re.findall(r"def (test_\w+)", sources))
    named = {word for word in words if word.startswith("test_")}
    assert len(named) > 100
    assert named - there == set()


def test_the_changelog_and_the_citation_name_the_version() -> None:
    (newest, *_) = re.findall(r"^## (\S+)", TEXTS[ROOT / "CHANGELOG.md"], re.MULTILINE)
    (cited,) = re.findall(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert (newest, cited) == (layernorm.__version__,) * 2


def test_the_api_reference_has_every_module_with_public_names() -> None:
    modules = [path for path in TEXTS if path.name == "__init__.py" and "__all__" in TEXTS[path]]
    public = {path.parent for path in modules if "cli" not in path.parts}
    pages = "".join(TEXTS[path] for path in TEXTS if path.parent == ROOT / "docs" / "api")
    named = {ROOT / "src" / each.replace(".", "/") for each in re.findall(r"{api} (\S+)", pages)}
    assert len(public) > 5
    assert public - named == set()


def headings(document: Path) -> list[str]:
    """The headings of a Markdown file, and the anchors that GitHub makes of them."""
    written = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in written]
    return written + anchors


def wrong_references(text: str, document: Path) -> list[str]:
    """Find references to sections by number, or by a heading that the named document lacks.

    They are `docs/x.md, "Heading"` (more with commas or "and") or, in Markdown, (x.md#anchor).
    """
    joined = re.sub(r"\s*\n\s*(//|#)?\s*", " ", text)
    wrong = re.findall(r"\bsections? \d+", joined, re.IGNORECASE)
    quoted = re.findall(r'docs/(\w+\.md)((?:(?:,| and) "[^"]+")+)', joined)
    named = [
        (ROOT / "docs" / file, name) for file, names in quoted for name in names.split('"')[1::2]
    ]
    linked = re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", joined)
    named += [(document.parent / file if file else document, name) for file, name in linked]
    wrong += [f"{file.name}: {name}" for file, name in named if name not in headings(file)]
    return wrong


def test_sections_are_named_by_headings_that_there_are() -> None:
    this = Path(__file__)
    found = {path: wrong_references(text, path) for path, text in TEXTS.items() if path != this}
    assert {path.name: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "text",
    [
        "specification.md, section 3, has the bounds",
        'docs/specification.md, "Edge cases"',
        '// docs/specification.md,\n// "Edges" and "Edge cases"',
        "[Accuracy](specification.md#acuracy)",
        "[below](#edge-cases)",
    ],
)
def test_a_wrong_reference_is_found(text) -> None:
    assert len(wrong_references(text, ROOT / "docs" / "specification.md")) == 1


def test_right_references_are_let_pass() -> None:
    text = '# docs/specification.md, "The same\n# bits", "Edges" and "Types"; [Edges](#edges)'
    assert wrong_references(text, ROOT / "docs" / "specification.md") == []
