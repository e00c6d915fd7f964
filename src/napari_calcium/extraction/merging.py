"""Merging: components that are parts of one cell become one."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from napari_calcium.footprints import cosines, masks

__all__ = ["inside_stronger", "merge_groups", "merged"]

MIN_OVERLAP = 0.1  # cosine of two footprints


def merge_groups(
    footprints: sp.csc_array, traces: NDArray[np.float32], correlation: float
) -> NDArray[np.int64]:
    """Say which components are one: footprints overlap and traces correlate.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
    traces : ndarray (cell, time)
    correlation : float
        Smallest correlation of the traces; above 1 nothing is merged.

    Returns
    -------
    ndarray (cell,) of int
        Number of the group of each component, groups numbered in order of appearance.

    Examples
    --------
    >>> footprints = sp.csc_array(np.array([[1.0, 0.9, 0.0], [1.0, 1.0, 1.0]]))
    >>> traces = np.array([[0, 1, 0, 2.0], [0, 1, 0, 2.1], [3, 0, 1, 0]], np.float32)
    >>> merge_groups(footprints, traces, 0.8)
    array([0, 0, 1])
    """
    count = footprints.shape[1]
    if count == 0:
        return np.zeros(0, np.int64)
    overlap = sp.coo_array(sp.triu(cosines(footprints), k=1))
    first, second = (ends[overlap.data > MIN_OVERLAP] for ends in overlap.coords)
    centred = traces - traces.mean(axis=1, keepdims=True)
    norms = np.maximum(np.linalg.norm(centred, axis=1), 1e-12)
    products = [
        np.einsum("t,t->", centred[i], centred[j]) for i, j in zip(first, second, strict=True)
    ]
    same = np.array(products) / (norms[first] * norms[second]) > correlation
    graph = sp.coo_array((np.ones(same.sum()), (first[same], second[same])), (count, count))
    groups = connected_components(graph, directed=False)[1]
    _, start, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(start))[inverse].astype(np.int64)


def inside_stronger(
    footprints: sp.csc_array, energy: NDArray[np.float64], part: float = 0.7
) -> NDArray[np.bool_]:
    """Say which components lie mostly inside a stronger one: its edge moving, not a cell.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
    energy : ndarray (cell,)
        Strength of each; one of no energy hides nothing.
    part : float
        Part of a component's area that must be covered by one other.

    Returns
    -------
    ndarray of bool (cell,)

    Examples
    --------
    >>> footprints = sp.csc_array(np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    >>> inside_stronger(footprints, np.array([2.0, 1.0, 1.0]))
    array([False,  True, False])
    """
    inside = masks(footprints)
    shared = sp.coo_array(inside.T @ inside)
    first, second = shared.coords
    covered = shared.data > part * np.diff(inside.indptr)[first]
    hidden = np.zeros(len(energy), bool)
    hidden[first[covered & (energy[second] > energy[first])]] = True
    return hidden


def merged(
    footprints: sp.csc_array, traces: NDArray[np.float32], groups: NDArray[np.int64]
) -> tuple[sp.csc_array, NDArray[np.float32]]:
    """Replace each group by one component: the rank-one fit of the sum of its parts."""
    if len(groups) == 0:
        return footprints, traces
    kept, joined = [], []
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        footprint, trace = footprints[:, members], traces[members]
        if len(members) > 1:
            weights = np.linalg.norm(trace, axis=1) + 1e-12
            for _ in range(5):  # rank one of footprint @ trace, by alternating projections
                mean = weights @ trace / (weights @ weights)
                weights = np.maximum(trace @ mean / max(float(mean @ mean), 1e-12), 0) + 1e-12
            footprint = sp.csc_array(footprint @ weights[:, None])
            trace = mean[None]
        kept.append(sp.csc_array(footprint))
        joined.append(trace)
    return sp.csc_array(sp.hstack(kept, format="csc")), np.concatenate(joined).astype(np.float32)
