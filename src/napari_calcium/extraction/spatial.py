"""Spatial update: the footprints that fit the movie best, given the traces.

Per pixel a non-negative sparse regression of its signal on the traces of the cells that reach it,
the penalty a multiple of the pixel's noise. It is solved by HALS, hierarchical alternating least
squares (Cichocki and Phan 2009, 10.1587/transfun.E92.A.708): each cell in turn takes its best
non-negative weight given the others, on products and Gram matrix computed once, until none moves.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numba import njit
from numpy.typing import NDArray

__all__ = ["update_footprints"]

SWEEPS = 40


def update_footprints(
    sums: sp.csc_array, gram: NDArray[np.float64], penalty: NDArray[np.float64]
) -> sp.csc_array:
    """Solve every pixel's regression.

    Parameters
    ----------
    sums : scipy.sparse.csc_array (pixel, cell)
        Products of pixels and traces on the cells' support.
    gram : ndarray (cell, cell)
        Products of traces.
    penalty : ndarray (entry,)
        For each stored entry of `sums` how much the product is lowered (L1).

    Returns
    -------
    scipy.sparse.csc_array (pixel, cell), float32
        Non-negative weights, on the support.

    Examples
    --------
    >>> true = np.array([[2.0, 0.0], [1.0, 3.0]])
    >>> gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> sums = sp.csc_array(true @ gram)
    >>> update_footprints(sums, gram, np.zeros(sums.nnz)).toarray().round(2)
    array([[2., 0.],
           [1., 3.]], dtype=float32)
    """
    by_column = sp.csc_array((np.asarray(penalty), sums.indices, sums.indptr), shape=sums.shape)
    rows, penalties = sp.csr_array(sums), sp.csr_array(by_column)
    weights = np.zeros(rows.nnz)
    products = rows.data.astype(np.float64) - penalties.data
    _descend(rows.indptr, rows.indices, products, gram, weights, SWEEPS)
    solved = sp.csr_array((weights.astype(np.float32), rows.indices, rows.indptr), rows.shape)
    return sp.csc_array(solved)


@njit(nogil=True, cache=True)
def _descend(indptr, indices, products, gram, weights, sweeps):  # type: ignore[no-untyped-def]
    """Non-negative coordinate descent in each row."""
    for pixel in range(len(indptr) - 1):
        start, stop = indptr[pixel], indptr[pixel + 1]
        for _ in range(sweeps):
            change = 0.0
            largest = 0.0
            for i in range(start, stop):
                k = indices[i]
                slope = products[i]
                for j in range(start, stop):
                    slope -= gram[k, indices[j]] * weights[j]
                step = slope / gram[k, k] if gram[k, k] > 0 else 0.0
                new = max(0.0, weights[i] + step)
                change = max(change, abs(new - weights[i]))
                largest = max(largest, new)
                weights[i] = new
            if change <= 1e-4 * largest:
                break
