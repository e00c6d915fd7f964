"""Time motion correction, read to written, in multiples of floors timed in the same run.

    python benchmarks/bench_motion.py [--frames 8000] [--no-memory]

The floors, on one core: a pair of real Fourier transforms of 512 x 512 px, there and back
(scipy.fft.rfft2 and irfft2, float32), and a copy of a frame of uint16; medians, timed before and
after each run. The stage is run as users run it, template, measures of quality and writing
included, by one worker, then by two. Then 2,000 and 20,000 frames of 512 x 512 are run, each in a
process of its own, to say how much more memory the longer one takes, unless ``--no-memory``. Quote
the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
WAYS = {
    "rigid": {"method": "rigid"},
    "piecewise, patches of 128 px": {"patch_size": 128, "patch_overlap": 32},
    "piecewise, defaults": {},
}
PIECE = 256
"""Frames of the simulation that are repeated to the length wanted."""


def main() -> None:
    """Print a table of times, and with --memory one of memory."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=8000)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, workers, frames, folder = arguments.one
        measure(way, int(workers), int(frames), Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "movie.zarr"
        write_recording(source, arguments.frames, 512)
        table = Table("method", "workers", "frames/s", "FFT pairs/frame", "copies/frame", "peak MB")
        for way in WAYS:
            for workers in (1, 2):
                figures = measured(way, workers, arguments.frames, Path(folder))
                table.add_row(way, str(workers), *row(figures, workers))
        Console(width=110).print(table)
    if arguments.memory:
        Console(width=110).print(memory_table())


def row(figures: dict[str, float], workers: int) -> list[str]:
    """Return the figures of one run as text; the multiples are per core."""
    seconds = workers / figures["rate"]
    multiples = seconds / figures["pair"], seconds / figures["copy"]
    return [f"{figures['rate']:.0f}", *(f"{n:.2f}" for n in multiples), f"{figures['peak']:.0f}"]


def memory_table() -> object:
    """Run a short and a long recording and return what memory they took."""
    from rich.table import Table

    table = Table("method", "peak MB, 2,000 frames", "peak MB, 20,000 frames", "more")
    for way in ("rigid", "piecewise, patches of 128 px"):
        peaks = []
        for frames in (2000, 20000):
            with tempfile.TemporaryDirectory() as folder:
                write_recording(Path(folder) / "movie.zarr", frames, 512)
                peaks.append(measured(way, 2, frames, Path(folder))["peak"])
        table.add_row(way, *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] / peaks[0] - 1:+.1%}")
    return table


def measured(way: str, workers: int, frames: int, folder: Path) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--one", way, str(workers), str(frames), str(folder)]
    one_thread = dict.fromkeys(ONE_THREAD, "1")
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | one_thread
    )
    return dict(json.loads(done.stdout))


def write_recording(path: Path, frames: int, side: int) -> None:
    """Write a simulated recording of 12 photons per px, a short one repeated there and back."""
    import numpy as np
    import zarr

    from napari_calcium.simulation import SimulationParameters, simulate

    parameters = SimulationParameters(
        height=side, width=side, n_frames=PIECE, n_cells=side * side // 800, motion_rigid=1.5
    )
    piece = simulate(parameters).movie.frames.compute()
    there_and_back = np.concatenate([piece, piece[::-1]])
    array = zarr.create_array(
        path, shape=(frames, side, side), dtype=piece.dtype, chunks=(128, side, side)
    )
    for start in range(0, frames, PIECE):
        stop = min(start + PIECE, frames)
        first = start % len(there_and_back)
        array[start:stop] = there_and_back[first : first + stop - start]


def measure(way: str, workers: int, frames: int, folder: Path) -> None:
    """Warm up on the first frames, then time the stage, and print the figures as JSON."""
    import zarr

    from napari_calcium.pipeline.recipe import Recipe
    from napari_calcium.pipeline.run import run

    recipe = Recipe({"import": {"frame_rate": 30.0}, "motion_correction": WAYS[way]})
    scheduler = "synchronous" if workers == 1 else "threads"
    options = {"recipe": recipe, "workers": workers, "scheduler": scheduler}
    source = folder / "movie.zarr"
    short = folder / f"short-{way[:14]}-{workers}.zarr"
    array = zarr.open_array(source, mode="r")
    first = zarr.create_array(
        short, shape=(130, *array.shape[1:]), dtype=array.dtype, chunks=array.chunks
    )
    first[:] = array[:130]
    run(short.with_suffix(".session"), [short], until="motion_correction", **options)
    path = folder / f"{way[:14]}-{workers}.session"
    run(path, [source], until="import", **options)
    before = floors()
    report = run(path, until="motion_correction", **options)
    after = floors()
    pair, copy = (sum(pair) / 2 for pair in zip(before, after, strict=True))
    rate = frames / report.stages[-1].seconds
    figures = {"rate": rate, "pair": pair, "copy": copy, "peak": report.peak_memory / 1e6}
    sys.stdout.write(json.dumps(figures))


def floors() -> tuple[float, float]:
    """Return the median seconds of a pair of Fourier transforms and of a copy of a frame."""
    import numpy as np
    import scipy.fft

    image = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    frame, target = np.zeros((2, 512, 512), np.uint16)

    def pair() -> None:
        scipy.fft.irfft2(scipy.fft.rfft2(image, workers=1), s=image.shape, workers=1)

    return median_seconds(pair, 101), median_seconds(lambda: np.copyto(target, frame), 1001)


def median_seconds(function: object, times: int) -> float:
    """Return the median time of a call."""
    import statistics
    import time

    durations = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


if __name__ == "__main__":
    main()
