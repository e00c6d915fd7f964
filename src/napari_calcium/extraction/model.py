"""What source extraction knows of the movie between two updates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.deconvolution.foopsi import DeconvolvedTraces
from napari_calcium.extraction.census import Census

__all__ = ["Model"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """Footprints, background and, once they are measured, traces.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Unit norm.
    neuropil : scipy.sparse.csc_array (pixel, n)
        Background that varies in time.
    mean, noise : ndarray (pixel,)
        Of single frames; 0 where a pixel is missing.
    missing : ndarray of bool (pixel,)
        Pixels that have a NaN in some frame: no footprint has them.
    shape : tuple of int
        (y, x).
    census : Census
        What became of the candidates.
    raw : ndarray (cell + n, time), optional
        Demixed traces about their mean.
    denoised : DeconvolvedTraces, optional
        The cells' part of `raw`.
    """

    footprints: sp.csc_array
    neuropil: sp.csc_array
    mean: Floats
    noise: Floats
    missing: NDArray[np.bool_]
    shape: tuple[int, int]
    census: Census
    raw: Floats | None = None
    denoised: DeconvolvedTraces | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.footprints.shape[1])

    @property
    def all_footprints(self) -> sp.csc_array:
        """Cells, then neuropil, side by side."""
        return sp.csc_array(sp.hstack([self.footprints, self.neuropil], format="csc"))

    @property
    def measured(self) -> tuple[Floats, DeconvolvedTraces]:
        """The raw traces of all components and the denoised ones of the cells.

        Raises
        ------
        ValueError
            Before they are measured.
        """
        if self.raw is None or self.denoised is None:
            raise ValueError("the model's traces are not measured yet")
        return self.raw, self.denoised
