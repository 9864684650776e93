"""The full benchmark: check every provider, time the grid, write results/<date>-<processor>.json.

    python benchmarks/run.py [--only "backward float32"] [--peers torch,jax] [--repeats 30]

The measuring is that of `layernorm bench --plan full`; this adds date and commit, keeps the file,
and prints what the README shows, in Markdown.
"""

import argparse
import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from layernorm.cli import bench
from layernorm.cli.bench_markdown import as_markdown
from layernorm.cli.console import open_console, strict_json
from layernorm.cli.providers import FRONT_ENDS

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", choices=("quick", "usual", "full"), default="full")
    parser.add_argument("--only", default="", metavar="WORDS", help="cells with all these words")
    parser.add_argument("--peers", metavar="NAMES", help="comma-separated (default: all installed)")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed samples (default 30)")
    parser.add_argument("--front-end", choices=FRONT_ENDS, default="numpy", help="which of ours")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    options = parser.parse_args()

    now = datetime.datetime.now(datetime.UTC)
    report = bench.measure(
        plan=options.plan,
        only=options.only,
        peers=options.peers,
        repeats=options.repeats,
        front_end=options.front_end,
        console=open_console(),
    )
    found = {
        "date": now.isoformat(timespec="seconds"),
        "front_end": options.front_end,
        "commit": commit(),
        **report.as_dict(),
    }
    file = write(found, options.results, now, options.front_end)
    print(as_markdown(report))
    print(f"\nwritten to {file}")


def write(found: dict[str, Any], folder: Path, now: datetime.datetime, front_end: str) -> Path:
    processor = re.sub(r"[^a-z0-9]+", "-", found["machine"]["processor"].lower()).strip("-")
    file = folder / f"{now:%Y-%m-%d-%H%M}-{processor}-{front_end}.json"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(strict_json(found), indent=1, allow_nan=False) + "\n")
    return file


def commit() -> str:
    """Name the commit that is measured, with "-dirty" where files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
