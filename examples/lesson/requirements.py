"""What must be installed to run the lesson."""

import importlib.util

PACKAGES = (
    *("ipykernel", "keras", "layernorm", "matplotlib", "nbclient", "sklearn", "tensorflow"),
    "torch",
)
REMEDY = "pip install . ipykernel keras matplotlib nbclient scikit-learn tensorflow torch"


def missing() -> list[str]:
    """Name the packages that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def message() -> str:
    """Say what is missing and how to install it."""
    return f"the lesson needs {', '.join(missing())}, not installed here: {REMEDY}"
