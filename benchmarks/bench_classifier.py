"""Time the classifier on 1,000 footprints, beside the same model run by Keras.

    python benchmarks/bench_classifier.py [--cells 1000] [--repeats 5]

Footprints are made up, in a field of 512 x 512 px. "First" is a process that has just started,
with all imports; "warm" is the median of the repeats in one process, on one core. The floor is the
matrix products of the network alone, on arrays of their sizes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

FIELD = (512, 512)
RADIUS = 6.0

PRODUCTS = (
    (1600, 9, 16), (1600, 144, 16), (400, 144, 32), (400, 288, 32), (100, 288, 48), (100, 432, 48),
    (1, 1200, 64), (1, 64, 1),
)  # fmt: skip
"""Rows, inner and columns of the products of each image."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first", choices=("numpy", "keras"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    footprints = made_up(arguments.cells)
    if arguments.first:
        WAYS[arguments.first]()(footprints)
        return
    table = Table("", "first, s", "warm, s", "times the floor")
    with threadpool_limits(1):
        floor = median(products, arguments.cells, arguments.repeats)
        for name, title in (("numpy", "as the stage does"), ("keras", "by Keras")):
            ask = WAYS[name]()
            ask(footprints)
            warm = median(ask, footprints, arguments.repeats)
            first = fresh(name, arguments.cells)
            table.add_row(title, f"{first:.2f}", f"{warm:.2f}", f"{warm / floor:.1f}")
    table.add_row("matrix products alone", "", f"{floor:.2f}", "1.0")
    Console(width=90).print(table)


def made_up(n_cells: int) -> sp.csc_array:
    """Return doughnuts at random places, (pixel, cell)."""
    random = np.random.default_rng(0)
    columns = []
    for place in random.uniform(20, 492, (n_cells, 2)):
        low = np.floor(place - 9).astype(int)
        y, x = np.mgrid[low[0] : low[0] + 19, low[1] : low[1] + 19]
        far = np.hypot(y - place[0], x - place[1])
        weights = np.clip(RADIUS + 0.5 - far, 0, 1) * (1 - 0.6 * np.exp(-((far / 3) ** 2)))
        pixels = (y * FIELD[1] + x)[weights > 0]
        columns.append((weights[weights > 0], pixels))
    indptr = np.cumsum([0, *(len(pixels) for _, pixels in columns)])
    data = np.concatenate([weights for weights, _ in columns]).astype(np.float32)
    indices = np.concatenate([pixels for _, pixels in columns])
    return sp.csc_array((data, indices, indptr), shape=(FIELD[0] * FIELD[1], n_cells))


def as_the_stage() -> Callable[[sp.csc_array], Any]:
    """Return what the stage calls."""
    from napari_calcium.evaluation.classifier import cnn_probability

    return lambda footprints: cnn_probability(footprints, FIELD, RADIUS)


def by_keras() -> Callable[[sp.csc_array], Any]:
    """Return the same, with the model run by Keras."""
    from napari_calcium.evaluation import classifier

    model = classifier._keras_model(classifier.SHIPPED)
    return lambda footprints: model(classifier.footprint_crops(footprints, FIELD, RADIUS))


WAYS = {"numpy": as_the_stage, "keras": by_keras}


def products(n_cells: int) -> None:
    """Multiply arrays of the sizes that the network has."""
    for rows, inner, columns in PRODUCTS:
        left = np.ones((rows, inner), np.float32)
        right = np.ones((inner, columns), np.float32)
        for _ in range(n_cells):
            left @ right


def median(work: Callable[[Any], Any], argument: Any, repeats: int) -> float:
    """Return the median time of a call, s."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work(argument)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def fresh(name: str, n_cells: int) -> float:
    """Return the time of a process that starts, imports, asks once and ends, s."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--first", name, "--cells", str(n_cells)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
