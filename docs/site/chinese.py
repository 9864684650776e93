"""Chinese pages: their search, and the language that they are marked with."""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

_WORD = re.compile(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+")


class SearchEnglishAndChinese(SearchEnglish):
    """English, and Chinese with neither a dictionary nor more JavaScript.

    The browser looks up a query as one word, and finds words that contain it if it is longer than
    two characters. So the index has each run of Chinese, and each two characters of it.
    """

    def split(self, input: str) -> list[str]:
        """Split a text into the words of the index."""
        words = _WORD.findall(input)
        chinese = [word for word in words if word[0] >= "\u4e00"]
        return words + [word[i : i + 2] for word in chinese for i in range(len(word) - 1)]


def mark(app: Sphinx, page: str, _: str, context: dict[str, Any], __: object) -> None:
    """Mark a page as Chinese, for the browser's fonts and voice."""
    if page.endswith(".zh"):
        context["language"] = "zh"


def setup(app: Sphinx) -> dict[str, bool]:
    """Put the search in place of that in English, and listen for pages."""
    app.add_search_language(SearchEnglishAndChinese)
    app.connect("html-page-context", mark)
    return {"parallel_read_safe": True}
