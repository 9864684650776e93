"""The arguments of the command `layernorm`, and which module answers each command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import layernorm
from layernorm.cli.console import open_console, print_json
from layernorm.cli.providers import FRONT_ENDS

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 for a broken contract, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layernorm", description="Layer normalization: what runs here, how well, how fast."
    )
    parser.add_argument("--version", action="version", version=layernorm.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    info = _add(commands, "info", "version, instruction sets, threads, caches, frameworks")
    info.set_defaults(run=_info)

    check = _add(commands, "check", "measure the accuracy contract; exit code 1 if we break it")
    _add_measuring(check)
    check.add_argument("--quick", action="store_true", help="smaller arrays, in seconds")
    check.set_defaults(run=_check)

    bench = _add(commands, "bench", "time forward and backward beside every installed peer")
    _add_measuring(bench)
    bench.add_argument(
        "--plan",
        choices=("quick", "usual", "full"),
        default="usual",
        help="how much to time (default usual: minutes)",
    )
    bench.add_argument(
        "--quick", action="store_const", dest="plan", const="quick", help="--plan quick: seconds"
    )
    bench.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the figures")
    bench.add_argument(
        "--only", default="", metavar="WORDS", help="cells with all these words: 'backward float32'"
    )
    bench.add_argument(
        "--repeats", type=_positive, metavar="N", help="timed samples (default 30; quick: 15)"
    )
    bench.set_defaults(run=_bench)

    demo = _add(commands, "demo", "train a small network on handwritten digits; check; bench")
    demo.add_argument(
        "--plot", type=Path, default=Path("losses.png"), metavar="FILE.png",
        help="where the losses are drawn (default losses.png)",
    )  # fmt: skip
    demo.add_argument("--epochs", type=_positive, metavar="N", help="of each training run")
    demo.add_argument(
        "--train-only", action="store_true", help="without the check and the benchmark"
    )
    demo.add_argument(
        "--frameworks",
        metavar="NAMES",
        help="in which the training is repeated: comma-separated, or 'none' "
        "(default: all that are installed and have a front end)",
    )
    demo.set_defaults(run=_demo)

    model = _add(commands, "minilm", "a real PyTorch model with its layer norms and with ours")
    model.add_argument("--paragraphs", type=_positive, metavar="N", help="to embed (default 256)")
    model.add_argument("--steps", type=_positive, metavar="N", help="of fine-tuning (default 300)")
    model.set_defaults(run=_minilm)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return command


def _add_measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--peers", metavar="NAMES", help="comma-separated, or 'none' (default: all installed)"
    )
    command.add_argument("--threads", type=_positive, metavar="N", help="(default: all)")
    command.add_argument(
        "--front-end",
        choices=FRONT_ENDS,
        default="numpy",
        help="by which of our front ends (default numpy)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _info(options: argparse.Namespace) -> int:
    from layernorm.cli import info

    console = None if options.json else open_console()
    found = info.describe()
    if console is None:
        print_json(found)
    else:
        info.show(found, console)
    return 0


def _check(options: argparse.Namespace) -> int:
    from layernorm.cli import check
    from layernorm.cli.providers import MissingPeersError

    console = None if options.json else open_console()
    try:
        report = check.measure(
            quick=options.quick,
            peers=options.peers,
            threads=options.threads,
            front_end=options.front_end,
            console=console,
        )
    except (MissingPeersError, ImportError, ValueError) as error:
        return _refuse(error)
    if console is None:
        print_json(report.as_dict())
    else:
        check.show(report, console)
    return 0 if report.holds else 1


def _bench(options: argparse.Namespace) -> int:
    from layernorm.cli import bench
    from layernorm.cli.providers import MissingPeersError

    console = None if options.json else open_console()
    try:
        report = bench.measure(
            plan=options.plan,
            peers=options.peers,
            threads=options.threads,
            only=options.only,
            repeats=options.repeats,
            front_end=options.front_end,
            console=console,
        )
    except (MissingPeersError, ImportError, ValueError) as error:
        return _refuse(error)
    if options.plot is not None:
        bench.plot(report, options.plot)
    if console is None:
        print_json(report.as_dict())
    else:
        bench.show(report, console)
        if options.plot is not None:
            console.print(f"drawn in {options.plot}")
    return 0 if report.is_right else 1


def _demo(options: argparse.Namespace) -> int:
    from layernorm.cli import demo
    from layernorm.cli.providers import parse_names

    console = None if options.json else open_console()
    frameworks = None if options.frameworks is None else parse_names(options.frameworks, ())
    try:
        return demo.run(
            console=console,
            plot_file=options.plot,
            epochs=options.epochs,
            train_only=options.train_only,
            frameworks=frameworks,
        )
    except (ImportError, ValueError) as error:
        return _refuse(error)


def _minilm(options: argparse.Namespace) -> int:
    from layernorm.cli import minilm
    from layernorm.cli.teller import Teller

    say = Teller(None if options.json else open_console())
    try:
        story = minilm.run(
            say,
            paragraphs=options.paragraphs or minilm.PARAGRAPHS,
            steps=options.steps or minilm.STEPS,
        )
    except ImportError as error:
        return _refuse(error)
    if options.json:
        print_json({"command": "minilm", **story})
    return 0


def _refuse(error: Exception) -> int:
    print(f"layernorm: {error}", file=sys.stderr)
    return USAGE_ERROR
