"""Learning curves as SVG that takes its colours from the page around it, dark or light."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, TRAIN, VAL, GRID = "#010101", "#010102", "#010103", "#010104"
PAGE_COLOURS = {INK: "currentColor", TRAIN: "var(--train)", VAL: "var(--val)", GRID: "var(--line)"}
"""Stand-ins that matplotlib writes, and the page's colours that replace them."""

FEW_EPOCHS = 12

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def learning_curve(history: Sequence[Mapping[str, Any]], quantity: str, title: str) -> Markup:
    """Draw a quantity of the training and of the validation part against the epoch.

    Args:
        history: one mapping an epoch, with the keys epoch, `train_<quantity>` and `val_<quantity>`.
        quantity: `loss` or `frame_accuracy`.
        title: read out in place of the picture; also the seed of its internal names.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(3.6, 2.4), layout="constrained")
        axes = figure.subplots()
        _draw(axes, history, quantity)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _fit_into_page(buffer.getvalue(), title)


def _draw(axes: Axes, history: Sequence[Mapping[str, Any]], quantity: str) -> None:
    epochs = [row["epoch"] for row in history]
    # A single epoch is a point: without a marker it could not be seen.
    marker = "o" if len(epochs) < FEW_EPOCHS else ""
    for part, colour, line in (("train", TRAIN, "--"), ("val", VAL, "-")):
        values = [row[f"{part}_{quantity}"] for row in history]
        axes.plot(epochs, values, line, color=colour, marker=marker, markersize=3, label=part)
    axes.set_title(quantity.replace("_", " "), loc="left", fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    if quantity.endswith("accuracy"):
        axes.set_ylim(0, 1)


def _fit_into_page(svg: str, title: str) -> Markup:
    """Cut the prolog, drop group names (every chart has the same) and hand the colours over to the page."""
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    opening = f'<svg class="chart" role="img" aria-label="{escape(title)}" '
    return Markup(svg.replace("<svg ", opening, 1))
