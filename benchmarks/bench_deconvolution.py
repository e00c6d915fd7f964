"""Time deconvolution and running percentiles of traces, in multiples of floors timed beside them.

    python benchmarks/bench_deconvolution.py [--repeats 5]

Milliseconds per million frames on one core, medians. Traces are simulated at 30 Hz: spikes at
0.5 Hz, noise of 0.3 spikes, calcium that decays by 0.95 per frame or has the coefficients 1.7 and
-0.712. Their noise and coefficients are given; the baseline is so in the first row only. L0 keeps
no transient below 3 sd of the noise. The floor is one pass through scipy.signal.lfilter with the
same coefficients and one copy, of the same frames in the same process. All that is done for users
by default, time constants and noise included, is timed once. Quote the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from rich.table import Table

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
FRAME_RATE, SPIKE_RATE, NOISE = 30.0, 0.5, 0.3
COEFFICIENTS = {1: (0.95,), 2: (1.7, -0.712)}
SHAPES = ((100, 10_000), (1, 1_000_000))
MIN_SPIKE = 3.0
WINDOW, PERCENTILE, FILTERED = 900, 8.0, 2
"""Frames; %; traces that go through the filter of SciPy, which is slower."""

Run = Callable[["NDArray[np.floating]"], object]


class Method(NamedTuple):
    """What is timed: the order of the calcium, a call with one trace, and the time wanted."""

    name: str
    order: int
    run: Run
    target: float | None = None  # ms per million frames


def main() -> None:
    """Print a table for each shape of the traces and one of percentiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # before NumPy is imported
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    from rich.console import Console

    console = Console(width=110)
    for shape in SHAPES:
        console.print(deconvolution_table(shape, arguments.repeats))
    console.print(whole_table())
    console.print(percentile_table(arguments.repeats))


def methods() -> list[Method]:
    """Return what is timed."""
    from napari_calcium.deconvolution.constrained import Penalty, deconvolve
    from napari_calcium.deconvolution.oasis import deconvolve_ar1

    def given(order: int, penalty: Penalty) -> Run:
        g, least = COEFFICIENTS[order], MIN_SPIKE * NOISE
        return lambda trace: deconvolve(trace, g, NOISE, penalty=penalty, min_spike=least)

    (g,) = COEFFICIENTS[1]
    return [
        Method("floor: AR(1) filter and copy", 1, floor(1, "float64")),
        Method("floor: AR(2) filter and copy", 2, floor(2, "float64")),
        Method("AR(1) un-penalised, known baseline", 1, lambda row: deconvolve_ar1(row, g), 25.0),
        Method("AR(1) un-penalised", 1, given(1, "none")),
        Method("AR(1) L1, noise-constrained", 1, given(1, "l1"), 300.0),
        Method("AR(1) L0", 1, given(1, "l0")),
        Method("AR(2) un-penalised", 2, given(2, "none")),
        Method("AR(2) L1, noise-constrained", 2, given(2, "l1"), 400.0),
        Method("AR(2) L0", 2, given(2, "l0")),
    ]


def simulated(order: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return traces (cell, time) above a baseline of 0."""
    import numpy as np
    from scipy.signal import lfilter

    rng = np.random.default_rng(0)
    spikes = rng.random(shape) < SPIKE_RATE / FRAME_RATE
    calcium = lfilter([1.0], [1.0, *(-g for g in COEFFICIENTS[order])], spikes.astype(float))
    return np.asarray(calcium + rng.normal(scale=NOISE, size=shape))


def deconvolution_table(shape: tuple[int, int], repeats: int) -> Table:
    """Time all methods with traces of a shape, in single and in double precision."""
    import numpy as np
    from rich.table import Table

    table = Table(title=f"{shape[0]:,} x {shape[1]:,} frames: ms per million")
    for heading in ("", "target", "float32", "times the floor", "float64", "times the floor"):
        table.add_column(heading, justify="right" if heading else "left")
    traces: dict[tuple[int, type[np.floating]], NDArray[np.floating]] = {
        (order, kind): simulated(order, shape).astype(kind)
        for order in COEFFICIENTS
        for kind in (np.float32, np.float64)
    }
    for method in methods():
        cells = [method.name, f"{method.target:.0f}" if method.target else ""]
        for kind in (np.float32, np.float64):
            rows = traces[method.order, kind]
            method.run(rows[0][:3000])  # compiles
            cells += beside(method.run, floor(method.order, kind), rows, repeats)
        table.add_row(*cells)
    return table


def whole_table() -> Table:
    """Time the deconvolution of all traces at once, with nothing given."""
    import numpy as np
    from rich.table import Table

    from napari_calcium.deconvolution.foopsi import DeconvolutionParameters, deconvolve_traces

    title = f"{SHAPES[0][0]:,} x {SHAPES[0][1]:,} frames, nothing given: ms per million"
    table = Table("", "ms", "times the floor", title=title, min_width=62)
    for options in (DeconvolutionParameters(ar_order=1), DeconvolutionParameters(ar_order=2)):
        rows = simulated(options.ar_order, SHAPES[0]).astype(np.float32)
        deconvolve_traces(rows[:2, :2000], FRAME_RATE, options)  # compiles
        start = time.perf_counter()
        deconvolve_traces(rows, FRAME_RATE, options)
        milliseconds = (time.perf_counter() - start) * 1e9 / rows.size
        least = per_million(floor(options.ar_order, np.float32), rows)
        table.add_row(
            f"AR({options.ar_order})", f"{milliseconds:.0f}", f"{milliseconds / least:.0f}"
        )
    return table


def floor(order: int, kind: DTypeLike) -> Run:
    """Return one filter and one copy."""
    import numpy as np
    from scipy.signal import lfilter

    above = np.ones(1, kind)
    below = np.array([1.0, *(-g for g in COEFFICIENTS[order])], kind)
    return lambda row: np.copy(lfilter(above, below, row))


def percentile_table(repeats: int) -> Table:
    """Time the running percentile beside that of SciPy and a copy."""
    import numpy as np
    from rich.table import Table
    from scipy.ndimage import percentile_filter

    from napari_calcium.activity.percentile import running_percentile

    rows = simulated(1, SHAPES[0]).astype(np.float32)
    running_percentile(rows[:1, :3000], WINDOW, PERCENTILE)  # compiles

    def ours(row: NDArray[np.floating]) -> object:
        return running_percentile(row[None], WINDOW, PERCENTILE)

    def theirs(row: NDArray[np.floating]) -> object:
        return percentile_filter(row, PERCENTILE, size=WINDOW)

    title = f"percentile in {WINDOW} frames: ms per million"
    table = Table("", "ms", "times the floor", title=title, min_width=62)
    least = floor(1, np.float32)
    table.add_row("napari-calcium", *beside(ours, least, rows, repeats))
    name = f"scipy.ndimage, {FILTERED} traces"
    table.add_row(name, *beside(theirs, least, rows[:FILTERED], repeats))
    return table


def beside(run: Run, least: Run, rows: NDArray[np.floating], repeats: int) -> list[str]:
    """Return a time, and its ratio to the floor timed in turn with it, as text."""
    pairs = [(per_million(run, rows), per_million(least, rows)) for _ in range(repeats)]
    milliseconds, floor = (statistics.median(times) for times in zip(*pairs, strict=True))
    return [f"{milliseconds:.1f}", f"{milliseconds / floor:.1f}"]


def per_million(run: Run, rows: NDArray[np.floating]) -> float:
    """Return the milliseconds of a call per trace, per million frames."""
    start = time.perf_counter()
    for row in rows:
        run(row)
    return 1e9 * (time.perf_counter() - start) / rows.size


if __name__ == "__main__":
    main()
