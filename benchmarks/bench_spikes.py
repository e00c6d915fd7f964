"""Time spike inference on 1,000 cells of 10,000 frames, beside the matrix products of its networks.

    python benchmarks/bench_spikes.py [--cells 1000] [--frames 10000] [--repeats 3] [--keras]

Traces are made up, at 30 Hz; the model is the one for excitatory neurons that comes with the
program. A process of its own infers them as the stage does, in two threads with one for linear
algebra each; its peak memory is that at the end of the first time, imports included. The floor is
the matrix products of the networks alone, on arrays of their sizes and in as many threads,
timed in turn with it. ``--keras`` adds the published design run by Keras as it was published, a
window of 64 frames for each frame and five networks, on some of the cells, in proportion.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

FRAME_RATE = 30.0
WORKERS = 2
MEMBERS = 5
"""Networks of the published ensembles."""

CELLS_BY_KERAS = 4
WINDOWS_AT_ONCE = 8192

PER_TRACE = ("told_", "scale_", "shift_", "share_", "gain")
"""How the layers are called that work once for each trace, and not on its frames."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keras", action="store_true", help="also the published form; slow")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = WAYS[arguments.one](arguments.cells, arguments.frames, arguments.repeats)
        sys.stdout.write(json.dumps(found))
        return
    stage = fresh("stage", arguments)
    networks = "1 network" if stage["networks"] == 1 else f"{stage['networks']} networks"
    title = f"{arguments.cells} cells x {arguments.frames} frames, {networks}, {WORKERS} threads"
    table = Table("", "seconds", "times the floor", "peak memory, MB", title=title)
    table.add_row("matrix products alone", f"{stage['floor']:.2f}", "1.0", "")
    rows = {"as the stage does": stage}
    if arguments.keras:
        published = fresh("keras", arguments)
        rows[f"published, {published['cells']} cells by Keras, in proportion"] = published
    for name, found in rows.items():
        ratio = found.get("ratio", found["seconds"] / stage["floor"])
        figures = f"{found['seconds']:.2f}", f"{ratio:.1f}", f"{found['memory']:.0f}"
        table.add_row(name, *figures)
    console = Console(width=100)
    console.print(table)
    lasts, before = arguments.frames / FRAME_RATE, stage["before"]
    console.print(
        f"The recording lasts {lasts:.0f} s. Memory with imports and traces: {before:.0f} MB"
    )


def fresh(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a process of its own measures."""
    options = {name: str(getattr(arguments, name)) for name in ("cells", "frames", "repeats")}
    command = [sys.executable, __file__, "--one", way]
    for name, value in options.items():
        command += [f"--{name}", value]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def as_the_stage(n_cells: int, n_frames: int, repeats: int) -> dict[str, Any]:
    """Time what the stage does, and the matrix products in turn with it."""
    import dask.array as da
    from threadpoolctl import threadpool_limits

    from napari_calcium.pipeline.inferring import CELLS, VALUES
    from napari_calcium.spikes.inference import (
        SpikeInferenceParameters,
        infer_spikes,
        read_spike_model,
    )

    dff = made_up(n_cells, n_frames)
    chosen = SpikeInferenceParameters()
    model = read_spike_model(chosen)
    size = max(1, min(CELLS, VALUES // n_frames))
    work = infer_spikes(da.from_array(dff, chunks=(size, -1)), FRAME_RATE, chosen)
    floor = products(model.networks, n_cells, n_frames, size)
    before = peak()
    with threadpool_limits(1):
        seconds(computed, work)
        memory = peak()
        seconds(computed, floor)
        taken = [(seconds(computed, work), seconds(computed, floor)) for _ in range(repeats)]
    return {
        "networks": len(model.networks),
        "seconds": statistics.median(one for one, _ in taken),
        "floor": statistics.median(other for _, other in taken),
        "ratio": statistics.median(one / other for one, other in taken),
        "memory": memory,
        "before": before,
    }


def by_keras(n_cells: int, n_frames: int, repeats: int) -> dict[str, Any]:
    """Time the published design as it was published, on some of the cells."""
    import numpy as np

    from napari_calcium.keras_models import import_keras
    from napari_calcium.spikes.network import AFTER, BEFORE, WINDOW, build_windowed

    import_keras(fast=True)
    import tensorflow

    tensorflow.get_logger().setLevel("ERROR")
    tensorflow.config.threading.set_intra_op_parallelism_threads(WORKERS)
    networks = [build_windowed() for _ in range(MEMBERS)]
    some = min(n_cells, CELLS_BY_KERAS)
    dff = np.pad(made_up(some, n_frames), ((0, 0), (BEFORE, AFTER)))

    def infer(traces: Any) -> None:
        for trace in traces:
            windows = np.lib.stride_tricks.sliding_window_view(trace, WINDOW)[..., None]
            for network in networks:
                network.predict(windows, batch_size=WINDOWS_AT_ONCE, verbose=0)

    infer(dff[:1])
    taken = statistics.median(seconds(infer, dff) for _ in range(repeats))
    return {"seconds": taken * n_cells / some, "memory": peak(), "cells": some}


WAYS: dict[str, Callable[[int, int, int], dict[str, Any]]] = {
    "stage": as_the_stage,
    "keras": by_keras,
}


def made_up(n_cells: int, n_frames: int) -> Any:
    """Return dF/F of cells with a transient every 2 s and noise levels of 1 to 6, (cell, time)."""
    import numpy as np
    from scipy.signal import lfilter

    random = np.random.default_rng(0)
    dff = np.empty((n_cells, n_frames), np.float32)
    for trace in dff:  # one by one, for the peak of memory
        spikes = random.poisson(0.5 / FRAME_RATE, n_frames)
        noise = random.uniform(1, 6) * np.sqrt(FRAME_RATE) / 95.4
        trace[:] = 0.3 * lfilter([1.0], [1.0, -0.97], spikes) + random.normal(0, noise, n_frames)
    return dff


def products(networks: Any, n_cells: int, n_frames: int, size: int) -> list[Any]:
    """Return tasks that multiply arrays of the sizes that the networks have for some cells each."""
    import numpy as np
    from dask import delayed

    from napari_calcium.spikes.forward import ROWS, STRETCH

    sizes = [
        (kernel[..., 0].size, kernel.shape[-1], ROWS if kernel.ndim == 3 else STRETCH)
        for network in networks
        for name, (kernel, _) in network.layers.items()
        if not name.startswith(PER_TRACE)
    ]

    def multiply(cells: int) -> None:
        for inner, columns, rows in sizes:
            left = np.ones((min(rows, n_frames), inner), np.float32)
            right = np.ones((inner, columns), np.float32)
            out = np.empty((len(left), columns), np.float32)
            for _ in range(cells):
                for start in range(0, n_frames, len(left)):
                    n = min(len(left), n_frames - start)
                    np.matmul(left[:n], right, out=out[:n])

    starts = range(0, n_cells, size)
    return [delayed(multiply)(min(size, n_cells - start)) for start in starts]


def computed(work: Any) -> None:
    """Compute what is lazy in the benchmark's threads."""
    import dask

    dask.compute(*work, scheduler="threads", num_workers=WORKERS)


def seconds(work: Callable[[Any], Any], argument: Any) -> float:
    """Return the time of a call, s."""
    start = time.perf_counter()
    work(argument)
    return time.perf_counter() - start


def peak() -> float:
    """Return the most memory that this process has had, MB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
