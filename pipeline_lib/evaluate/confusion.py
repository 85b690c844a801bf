"""Draw the confusion matrix."""

# C classes

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT = "#1b1b1f", "#d9d9de"


def draw_confusion(path: Path, counts_CC: np.ndarray, classes: Sequence[str], *, title: str) -> None:
    """Write the confusion matrix as a PNG: colours show fractions of the true class's clips, numbers show clips."""
    num_classes = len(classes)
    side_inches = 2.5 + max(3.5, 0.27 * num_classes if num_classes > 20 else 0.55 * num_classes)
    font_size = 6.5 if num_classes > 20 else 9
    figure = Figure(figsize=(side_inches, side_inches), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    totals_C = counts_CC.sum(axis=1, keepdims=True)
    shares_CC = counts_CC / np.maximum(totals_C, 1)
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    labels = [_label(name) for name in classes]
    axes.set_xticks(range(num_classes), labels, rotation=90 if num_classes > 8 else 45, fontsize=font_size)
    axes.set_yticks(range(num_classes), labels, fontsize=font_size)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.set_title(_label(title), color=INK, fontsize=11, pad=12)
    axes.set_xticks(np.arange(num_classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_edgecolor(FAINT)
    for row, column in np.argwhere(counts_CC > 0):
        colour = "white" if shares_CC[row, column] > 0.55 else INK
        axes.text(column, row, counts_CC[row, column], ha="center", va="center", fontsize=font_size, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.02)
    bar.set_label("share of the true class", color=INK, fontsize=9)
    bar.outline.set_visible(False)
    figure.savefig(path)


def _label(text: str) -> str:
    """Escape dollar signs, which matplotlib would parse as a formula."""
    return text.replace("$", r"\$")
