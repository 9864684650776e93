"""Compare PyTorch's layer norms in MiniLM with ours: embeddings, times, gradients.

    make minilm [ARGS="--paragraphs 256 --steps 300"]

or, in the folder examples, with what `requirements.REMEDY` names installed: python -m minilm
"""

import argparse
import json

from layernorm.cli.arguments import positive
from minilm import requirements


def main() -> None:
    parser = argparse.ArgumentParser(prog="minilm", description=__doc__.splitlines()[0])
    parser.add_argument("--paragraphs", type=positive, default=256, help="to embed (default 256)")
    parser.add_argument("--steps", type=positive, default=300, help="of fine-tuning (default 300)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if requirements.missing():
        parser.error(requirements.message())
    from minilm import compare, tables

    found = compare.compare(paragraphs=options.paragraphs, steps=options.steps)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        tables.print_comparison(found)


if __name__ == "__main__":
    main()
