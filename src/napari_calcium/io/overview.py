"""One picture of a session: where the accepted cells are and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from napari_calcium.footprints import outlines
from napari_calcium.io.choices import accepted_cells
from napari_calcium.io.export import KINDS, kind_of_change
from napari_calcium.io.session import Session

__all__ = ["save_overview"]

TRACES = 10

RATE_HEIGHT = 0.45
"""Height of the plot of a rate of spikes, that of a trace being 1."""


def save_overview(session: Session, path: str | Path) -> None:
    """Draw the mean image with the outlines of the accepted cells, and traces of ten of them.

    The traces are dF/F, or of one-photon recordings detrended, as is said above them. Below each,
    in black, is its rate of spikes, where it is known.

    Parameters
    ----------
    session : Session
        A session whose stages up to dF/F have run.
    path : path
        The picture to write, of a type matplotlib knows, for example ``.png``.

    Raises
    ------
    InputError
        If one of these stages has not run, or ran before a stage that it needs.
    """
    for group in ("summary_images", "component_evaluation", "dff"):
        session.current(group)
    components, quality = session.components(), session.quality()
    accepted = np.flatnonzero(accepted_cells(session))
    best = accepted[np.argsort(-quality.snr[accepted], kind="stable")][:TRACES]
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    field, plot = figure.subplots(1, 2, width_ratios=(1, 1.3))
    colours = {int(cell): f"C{place % 10}" for place, cell in enumerate(best)}
    _draw_field(field, session.read("summary_images/mean"), session.pixel_size)
    for cell in accepted:
        colour = colours.get(int(cell), "white")
        for line in outlines(components.footprint(int(cell)))[:1]:
            field.plot(line[:, 1], line[:, 0], color=colour, linewidth=1.2)
    field.set_title(f"mean image, {len(accepted)} accepted of {components.n_cells} components")
    _draw_traces(plot, session, best, colours)
    figure.savefig(path, dpi=110)


def _draw_field(axes: Any, mean: NDArray[np.float32], pixel_size: float) -> None:
    low, high = np.percentile(mean, (1, 99.7))
    axes.imshow(mean, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axes.set_xlabel(f"x (px of {pixel_size:g} um)" if pixel_size else "x (px)")
    axes.set_ylabel("y (px)")
    axes.autoscale(False)  # outlines of cells at the border do not widen the picture


def _draw_traces(
    axes: Any, session: Session, cells: NDArray[np.intp], colours: dict[int, str]
) -> None:
    """Draw dF/F or detrended traces one above the other, each scaled to the same height.

    Below each is its rate of spikes, in the same way, where any is known.
    """
    times = np.arange(session.array("dff/traces").shape[1]) / session.frame_rate
    identities = session.read("source_extraction/cell_id")
    traces, rates = session.read("dff/traces")[cells], _rates(session, cells)
    apart = 1.15 if rates is None else 1.15 + RATE_HEIGHT
    for place, (cell, trace) in enumerate(zip(cells, traces, strict=True)):
        scale = _largest(trace)
        axes.plot(times, trace / scale - apart * place, color=colours[int(cell)], linewidth=0.8)
        axes.text(times[-1], -apart * place, f"  max {_two_digits(scale)}", va="bottom", fontsize=8)
    for place, rate in enumerate([] if rates is None else rates):
        bottom, scale = -apart * place - RATE_HEIGHT, _largest(rate)
        axes.plot(times, bottom + 0.9 * RATE_HEIGHT * rate / scale, color="black", linewidth=0.6)
        said = f"  max {_two_digits(scale)} Hz" if np.isfinite(rate).any() else "  unknown"
        axes.text(times[-1], bottom, said, va="bottom", fontsize=6)
    axes.set_yticks(
        -apart * np.arange(len(cells)), [f"cell {identities[cell]}" for cell in cells], fontsize=8
    )
    axes.set_xlabel("time (s)")
    label = KINDS[kind_of_change(session)].label
    label += "" if rates is None else f" and, in black, {KINDS['spike_rate'].label}"
    axes.set_title(f"{label}, each scaled to its maximum")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _rates(session: Session, cells: NDArray[np.intp]) -> NDArray[np.float32] | None:
    """Return the rates of spikes of some cells, if any of the traces that there are is known."""
    if not session.is_current("spike_inference"):
        return None
    rates = session.spike_rate()[cells]
    return rates if np.isfinite(rates).any() else None


def _largest(values: NDArray[np.float32]) -> float:
    return float(np.max(values, initial=1e-9, where=np.isfinite(values)))


def _two_digits(value: float) -> str:
    """Return a value with two digits that count, and without a power of ten.

    Examples
    --------
    >>> _two_digits(0.1234), _two_digits(1234.5)
    ('0.12', '1200')
    """
    return f"{float(f'{value:.2g}'):g}"
