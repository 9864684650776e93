"""Execute the lesson: every cell runs, and the notebook is written with its pictures.

    python -m lesson [--output FOLDER]

in the folder examples, with what `requirements.REMEDY` names installed. To read and change it
instead, open lesson/layer_norm.ipynb in Jupyter.
"""

import argparse
from pathlib import Path

from lesson import requirements

OUTPUT = Path(__file__).parents[2] / "build" / "lesson"


def main() -> None:
    parser = argparse.ArgumentParser(prog="lesson", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder to write to (default build/lesson)"
    )
    options = parser.parse_args()
    if requirements.missing():
        parser.error(requirements.message())
    from lesson import run

    run.run(options.output)


if __name__ == "__main__":
    main()
