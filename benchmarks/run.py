"""Run the full plan of `layernorm bench`, print it as Markdown and keep it as JSON.

    python benchmarks/run.py [--only "backward float32"] [--peers torch,jax] [--results FOLDER]

The file is named after the front end. Those in benchmarks/results, from which docs/images/speed.png
is drawn, are replaced with `--results benchmarks/results`.
"""

import argparse
import datetime
import subprocess
from pathlib import Path

from markdown_tables import as_markdown

from layernorm.cli.bench.command import add_plan, measure_as_told
from layernorm.cli.bench.stored import as_dict
from layernorm.cli.compact_json import compact_json
from layernorm.cli.console import open_console, progress_bar

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_plan(parser, default="full")
    parser.add_argument("--results", type=Path, default=ROOT / "build/bench", metavar="FOLDER")
    options = parser.parse_args()
    with progress_bar(open_console()) as progress:
        report = measure_as_told(options, progress)
    found = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "front_end": options.front_end,
        **as_dict(report),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / f"{options.front_end}.json"
    file.write_text(compact_json(found))
    print(as_markdown(report))
    print(f"\nwritten to {file}")


def commit() -> str:
    """Name the commit that is measured, with "-dirty" if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
