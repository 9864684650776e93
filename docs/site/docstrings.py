"""Docstrings as the Markdown that MyST reads: they are Markdown already, but for their sections."""

import re

_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Source):", re.MULTILINE)
_LIST = re.compile(r"^:(?:Args|Attributes):(?:\n(?:    .*)?)+", re.MULTILINE)
_ENTRY = re.compile(r"^    (\*{0,2}\w+(?:,\s+\*{0,2}\w+)*): ", re.MULTILINE)


def to_markdown(docstring: str) -> str:
    """Turn the sections of a cleaned docstring into field lists, and names into links.

    A name that is not documented stays code.
    """
    text = _NAME.sub(r"{py:obj}`\1`", docstring)
    text = _SECTION.sub(r"\n:\1:", text)
    return _LIST.sub(_definitions, text).replace("\n:Args:", "\n:Parameters:")


def _definitions(section: re.Match[str]) -> str:
    """Turn `names: text` lines, continued by indented ones, into a definition list."""
    return _ENTRY.sub(_term, section[0]).replace("\n        ", "\n      ")


def _term(entry: re.Match[str]) -> str:
    names = entry[1].replace(",", "").split()
    return f"\n    {', '.join(f'`{name}`' for name in names)}\n    : "
