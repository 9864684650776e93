"""Runs cases of one framework in a process of its own: python worker.py FRAMEWORK FIRST COUNT END.

It prints a line before each case, `case SEED`; for each failure `wrong` and a JSON object; and in
the end `memory MIB`. It stops before the case FIRST + COUNT, after a minute, at the time END, or
when it has taken much memory; a case that hangs ends it with a traceback.
"""

import faulthandler
import json
import os
import sys
import time
import warnings
from pathlib import Path

MOST_MIB = 3000
MOST_SECONDS = 60  # once the framework is imported
SECONDS_OF_A_CASE = 240
MOST_SHRUNK = 3  # failures of one process that are shrunk

# Read when the frameworks are imported.
ENVIRONMENT = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(framework: str, first: int, count: int, end: float, report) -> None:
    """Check the cases of these seeds; call report(word, value) as the lines above say."""
    from draw import draw
    from judge import front_end_of
    from peak_memory import resident
    from shrink import failure_of, shrink

    front_end_of(framework)
    end = min(end, time.time() + MOST_SECONDS)
    wrong = 0
    for seed in range(first, first + count):
        if time.time() > end or resident("VmHWM") > MOST_MIB * 2**20:
            break
        report("case", seed)
        faulthandler.dump_traceback_later(SECONDS_OF_A_CASE, exit=True)
        case = draw(framework, seed)
        failure = failure_of(case)
        if failure is not None:
            wrong += 1
            if wrong <= MOST_SHRUNK:
                case, failure = shrink(case, failure)
            message = f"{type(failure).__name__}: {failure}".replace(repr(case), "").strip(" :")
            report("wrong", json.dumps({"seed": seed, "case": repr(case), "message": message}))
        faulthandler.cancel_dump_traceback_later()
    report("memory", resident("VmHWM") // 2**20)


def main() -> None:
    framework, first, count, end = sys.argv[1:]
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    os.environ.update(ENVIRONMENT)
    if framework.startswith("keras"):
        os.environ["KERAS_BACKEND"] = framework.removeprefix("keras_")
    faulthandler.enable()
    warnings.simplefilter("ignore")  # of frameworks, about themselves
    # What else is printed goes to the errors.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    run(
        framework,
        int(first),
        int(count),
        float(end),
        lambda word, value: print(word, value, file=lines),
    )
    lines.flush()
    os._exit(0)  # after torch.compile, an ordinary end of the process may crash in PyTorch


if __name__ == "__main__":
    main()
