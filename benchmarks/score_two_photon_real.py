"""Score a session of the real two-photon recording against its hand labels.

    python benchmarks/score_two_photon_real.py SESSION.zarr DATA

DATA is the folder with ``regions.json`` (labelled cells, lists of [y, x]) and, optionally,
``caiman_reference.npz``, what CaImAn finds on the same frames. Footprints are cut at 20 % of their
maximum and matched to the labels one to one (Hungarian) at an intersection over union of 0.3.

Many labelled cells are silent. Those are counted as active whose mean fluorescence, less 0.7 of
that of a ring around them, has a transient SNR of at least 2.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from dask import delayed
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from napari_calcium.evaluation.snr import trace_snr
from napari_calcium.io.session import Session
from napari_calcium.movie import project

CUT = 0.2
MIN_IOU = 0.3
ACTIVE_SNR = 2.0
NEUROPIL = 0.7
RING = (2, 10)  # px from the label's edge


def main() -> None:
    """Print the score table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("session", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    session = Session(arguments.session)
    components, accepted = session.components(), session.quality().accepted
    labels = read_labels(arguments.data / "regions.json", components.shape)
    found = binary(components.footprints)
    rows = {"napari-calcium, all": found, "napari-calcium, accepted": found[:, accepted]}
    reference = arguments.data / "caiman_reference.npz"
    if reference.is_file():
        theirs, chosen = read_reference(reference)
        rows |= {"CaImAn, all": theirs, "CaImAn, accepted": theirs[:, chosen]}
    active = label_snr(session, labels) >= ACTIVE_SNR
    heading = f"recall of the {active.sum()} active"
    table = Table("", "components", "F1", "precision", "recall", heading)
    for name, masks in rows.items():
        figures = (*score(masks, labels), matched(masks, labels)[active].mean())
        table.add_row(name, str(masks.shape[1]), *[f"{figure:.3f}" for figure in figures])
    Console(width=110).print(table)


def read_labels(path: Path, shape: tuple[int, int]) -> sp.csc_array:
    """Return the labelled cells as masks (pixel, cell)."""
    masks = np.zeros((shape[0] * shape[1], 0), np.float32)
    columns = [masks]
    for region in json.loads(path.read_text()):
        mask = np.zeros(shape, np.float32)
        mask[tuple(np.transpose(region["coordinates"]))] = 1
        columns.append(mask.reshape(-1, 1))
    return sp.csc_array(np.hstack(columns))


def read_reference(path: Path) -> tuple[sp.csc_array, np.ndarray]:
    """Return the reference's masks and which of them it accepted."""
    with np.load(path) as data:
        parts = (data["A_data"], data["A_indices"], data["A_indptr"])
        footprints = sp.csc_array(parts, shape=tuple(data["A_shape"]))
        return binary(footprints), np.asarray(data["accepted"])


def binary(footprints: sp.csc_array) -> sp.csc_array:
    """Cut footprints at a part of their maximum."""
    footprints = sp.csc_array(footprints, copy=True)
    largest = np.maximum.reduceat(np.append(footprints.data, 0), footprints.indptr[:-1])
    footprints.data = (
        footprints.data > CUT * np.repeat(largest, np.diff(footprints.indptr))
    ).astype(np.float32)
    footprints.eliminate_zeros()
    return footprints


def label_snr(session: Session, labels: sp.csc_array) -> np.ndarray:
    """Return the transient SNR of each label's fluorescence, that of its surround taken off."""
    movie = session.movie("motion_correction/frames")
    inside = labels.toarray().T.reshape(-1, *movie.plane) > 0
    near, far = (np.array([ndimage.binary_dilation(m, iterations=n) for m in inside]) for n in RING)
    ring = far & ~near & ~inside.any(axis=0)
    weights = np.concatenate([inside, ring]).reshape(2 * len(inside), -1).T.astype(np.float32)
    weights /= np.maximum(weights.sum(axis=0), 1)
    traces = project(movie, delayed(sp.csc_array(weights))).compute()
    traces = traces[: len(inside)] - NEUROPIL * traces[len(inside) :]
    return trace_snr(traces, movie.frame_rate, decay_time=0.6)


def matched(masks: sp.csc_array, labels: sp.csc_array) -> np.ndarray:
    """Say which labels a mask was matched to."""
    both = (masks.T @ labels).toarray()
    union = masks.sum(axis=0)[:, None] + labels.sum(axis=0) - both
    iou = both / np.maximum(union, 1)
    mask, label = linear_sum_assignment(-iou)
    found = np.zeros(labels.shape[1], bool)
    found[label[iou[mask, label] >= MIN_IOU]] = True
    return found


def score(masks: sp.csc_array, labels: sp.csc_array) -> tuple[float, float, float]:
    """Return F1, precision and recall of masks against labels."""
    hits = int(matched(masks, labels).sum())
    precision, recall = hits / max(masks.shape[1], 1), hits / labels.shape[1]
    return 2 * hits / (masks.shape[1] + labels.shape[1]), precision, recall


if __name__ == "__main__":
    main()
