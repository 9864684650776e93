"""Draw docs/images/speed.png from results/numpy.json: ours, the peers and a copy."""
# ruff: noqa: RUF001, RUF003 - the picture says 2.5×, not 2.5x

import json
from pathlib import Path
from typing import Any

from layernorm.cli.bench.cells import Cell
from layernorm.cli.bench.results import COPY, OURS, Report
from layernorm.cli.bench.stored import report_from
from layernorm.cli.pictures import open_pyplot

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "numpy.json"
PICTURE = HERE.parent / "docs" / "images" / "speed.png"

SHAPES = ((1, 768), (512, 768), (4096, 768), (8192, 1024))
PANELS = tuple((way, kind) for way in ("forward", "backward") for kind in ("float32", "bfloat16"))
PEERS = {
    "torch": ("PyTorch", "#e4572e"),
    "torch.compile": ("torch.compile", "#f3a712"),
    "jax": ("JAX", "#5b5bd6"),
    "onnxruntime": ("ONNX Runtime", "#29b6d8"),
    "keras": ("Keras", "#b5179e"),
}
GREEN, GREY, INK = "#1a7f4b", "#9a9a9a", "#222222"


def main() -> None:
    report = report_from(json.loads(RESULTS.read_text()))
    medians = median_microseconds(report)
    pyplot = open_pyplot()
    pyplot.rcParams |= {"font.size": 10.5, "text.color": INK, "axes.labelcolor": INK}
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 5.6), sharex=True, facecolor="white")
    for axes, (direction, type_name) in zip(grid.flat, PANELS, strict=True):
        draw_panel(axes, direction, type_name, medians)
    for axes in grid[1]:
        axes.set_xlabel("time of a call, relative to layernorm (log scale)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=7, frameon=False,
                  handletextpad=0.2, columnspacing=1.2)  # fmt: skip
    figure.text(0.5, 0.012, caption(report), ha="center", fontsize=9, color="#666666")
    figure.tight_layout(rect=(0, 0.03, 1, 0.95), w_pad=2)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=178, metadata={"Software": None}, pil_kwargs={"optimize": True})


def median_microseconds(report: Report) -> dict[tuple[Cell, str], float]:
    """Of what ran on all threads."""
    threads = max(each.threads for each in report.results)
    return {
        (each.cell, each.provider): 1e6 * each.timing.median
        for each in report.results
        if each.threads == threads and each.timing is not None
    }


def draw_panel(
    axes: Any, direction: str, type_name: str, medians: dict[tuple[Cell, str], float]
) -> None:
    """Draw a line for each shape: a dot for each provider, ours at 1."""
    cells = [Cell(direction, shape, type_name) for shape in SHAPES]
    cells = [cell for cell in cells if (cell, OURS) in medians]
    axes.axvline(1, color=GREEN, linewidth=2, zorder=1)
    labels = []
    for place, cell in enumerate(cells):
        ours = medians[cell, OURS]
        labels.append(f"{cell.shape[0]} × {cell.shape[1]}\n{microseconds(ours)}")
        ratios = {
            name: medians[cell, name] / ours for name in (COPY, *PEERS) if (cell, name) in medians
        }
        peers = {name: ratio for name, ratio in ratios.items() if name != COPY}
        axes.hlines(place, min(1, *ratios.values()), max(peers.values()),
                    color="#e3e3e3", linewidth=2, zorder=0)  # fmt: skip
        first = place == 0
        axes.scatter(1, place, s=110, color=GREEN, zorder=4, label="layernorm" if first else None)
        for name, ratio in peers.items():
            title, color = PEERS[name]
            axes.scatter(ratio, place, s=55, color=color, edgecolor="white", linewidth=0.6,
                         zorder=3, label=title if first else None)  # fmt: skip
        axes.scatter(ratios[COPY], place, s=70, marker="|", color=GREY, linewidth=2.5, zorder=3,
                     label="copying x" if first else None)  # fmt: skip
        fastest = min(peers.values())
        shift = 7 if fastest < 1.6 else 0  # clear of our own line
        axes.annotate(f"{fastest:.1f}×", (fastest, place), (shift, 7), textcoords="offset points",
                      ha="center", fontsize=9.5, color=INK)  # fmt: skip
    axes.set(xscale="log", xlim=(0.18, 90), ylim=(len(cells) - 0.5, -0.6))
    axes.set_xticks([1, 3, 10, 30], ["1×", "3×", "10×", "30×"])
    axes.minorticks_off()
    axes.set_yticks(range(len(cells)), labels, fontsize=9.5)
    axes.set_title(f"{direction}, {type_name}", loc="left", fontweight="bold", fontsize=11)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color="#eeeeee", zorder=-1)
    axes.set_axisbelow(True)


def microseconds(value: float) -> str:
    """Write 0.57 as "0.57 µs", 2493 as "2.5 ms"."""
    if value >= 1000:
        return f"{value / 1000:.1f} ms"
    return f"{value:.{2 if value < 10 else 0}f} µs"


def caption(report: Report) -> str:
    machine = report.machine
    isa = machine["isa"].upper().replace("AVX", "AVX-")
    return (
        f"{machine['processor']}, {machine['usable_processors']} cores, {isa}. "
        "Rows × columns, and layernorm's own median time. The number belongs to the fastest peer."
    )


if __name__ == "__main__":
    main()
