"""What source extraction finds and what evaluation says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

__all__ = ["PROPERTIES", "QUALITY_TYPES", "Background", "Components", "Quality"]

Floats = NDArray[np.float32]

PROPERTIES: dict[str, tuple[int, ...]] = {"baseline": (), "noise": (), "time_constants": (2,)}
"""What may be known of each cell beyond its traces, and its axes beyond (cell,)."""

PER_CELL = ("snr", "spatial_correlation", "cnn_probability", "accepted", "size", "reasons")
"""What evaluation knows of each cell by itself."""

QUALITY_TYPES: dict[str, type] = {
    **dict.fromkeys(PER_CELL, np.float32),
    "accepted": np.bool_,
    "reasons": np.uint16,
    "pairs": np.int64,
    "overlap": np.float32,
}
"""Arrays of `Quality` and their types."""


@dataclass(frozen=True)
class Background:
    """Neuropil and everything else that is not a cell, as a few components.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, n)
        Weights, pixel = y * width + x; the first is the static image in the movie's unit (its trace
        is 1), the others are neuropil, not negative.
    traces : ndarray (n, time)
        Activity of each component.
    """

    footprints: sp.csc_array
    traces: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "footprints", _columns(self.footprints))
        object.__setattr__(self, "traces", _rows("background traces", self.traces))
        if self.footprints.shape[1] != len(self.traces):
            raise ValueError(
                f"{self.footprints.shape[1]} background footprints but {len(self.traces)} traces"
            )


@dataclass(frozen=True)
class Components:
    """Cells: where each is and what it does.

    The movie is modelled as ``footprints @ traces + background.footprints @ background.traces``.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Non-negative weights of unit Euclidean norm, pixel = y * width + x.
    shape : tuple of int
        Field of view, (y, x), in pixels.
    traces : ndarray (cell, time)
        Denoised fluorescence above rest (CaImAn: ``C``), in the movie's unit times pixels; the
        resting fluorescence is part of the background's static image.
    residuals : ndarray (cell, time)
        What the denoising took away (CaImAn: ``YrA``); ``traces + residuals`` is the raw trace.
    deconvolved : ndarray (cell, time)
        Non-negative activity per frame; the trace is its convolution with the calcium response and
        what is left of calcium from before the first frame, whose activity is 0 (CaImAn: ``S``).
    background : Background
        Everything that is not a cell.
    cell_id : ndarray of int64 (cell,)
        Identity of each cell; stays with the cell when others are removed.
    baseline : ndarray (cell,), optional
        Fluorescence at rest under the footprint, neuropil included, in the traces' unit: what the
        static image adds to a trace that is measured by itself. NaN where not known, as the next.
    noise : ndarray (cell,), optional
        Standard deviation of the raw trace's white noise, in the traces' unit (CaImAn:
        ``neurons_sn``).
    time_constants : ndarray (cell, 2), optional
        Of a transient's decay and rise, s (CaImAn: ``g``); NaN where the model has none.

    Raises
    ------
    ValueError
        If the parts do not have the same cells, frames or pixels.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> empty = np.zeros((0, 5), np.float32)
    >>> none = sp.csc_array((6, 0), dtype=np.float32)
    >>> Components(none, (2, 3), empty, empty, empty, Background(none, empty), np.arange(0)).n_cells
    0
    """

    footprints: sp.csc_array
    shape: tuple[int, int]
    traces: Floats
    residuals: Floats
    deconvolved: Floats
    background: Background
    cell_id: NDArray[np.int64]
    baseline: Floats = None  # type: ignore[assignment]
    noise: Floats = None  # type: ignore[assignment]
    time_constants: Floats = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "footprints", _columns(self.footprints))
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        for name in ("traces", "residuals", "deconvolved"):
            object.__setattr__(self, name, _rows(name, getattr(self, name)))
        object.__setattr__(self, "cell_id", np.ascontiguousarray(self.cell_id, dtype=np.int64))
        for name, shape in PROPERTIES.items():
            values = getattr(self, name)
            values = np.full((self.n_cells, *shape), np.nan) if values is None else values
            object.__setattr__(self, name, np.ascontiguousarray(values, dtype=np.float32))
        self._check()

    def _check(self) -> None:
        pixels, cells = self.footprints.shape
        if pixels != self.shape[0] * self.shape[1]:
            raise ValueError(f"footprints have {pixels} pixels but the field is {self.shape}")
        if self.background.footprints.shape[0] != pixels:
            raise ValueError("the background is of another field than the footprints")
        if not self.traces.shape == self.residuals.shape == self.deconvolved.shape:
            raise ValueError("traces, residuals and deconvolved differ in shape")
        if len(self.traces) != cells or self.cell_id.shape != (cells,):
            raise ValueError(
                f"{cells} footprints, {len(self.traces)} traces, {self.cell_id.size} identities"
            )
        for name, shape in PROPERTIES.items():
            if getattr(self, name).shape != (cells, *shape):
                raise ValueError(f"{cells} cells, {name} {getattr(self, name).shape}")
        if len(np.unique(self.cell_id)) != cells:
            raise ValueError("two cells have the same identity")
        if self.background.traces.shape[1] != self.traces.shape[1]:
            raise ValueError("the background has other frames than the traces")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.footprints.shape[1]

    def footprint(self, index: int) -> Floats:
        """Return one footprint as an image (y, x)."""
        image = np.zeros(self.shape[0] * self.shape[1], np.float32)
        start, stop = self.footprints.indptr[index : index + 2]
        image[self.footprints.indices[start:stop]] = self.footprints.data[start:stop]
        return image.reshape(self.shape)


@dataclass(frozen=True)
class Quality:
    """Scores of each cell and the decision made from them.

    Parameters
    ----------
    snr : ndarray (cell,)
        Exceptionality of the largest transient, in units of three standard deviations of the noise.
    spatial_correlation : ndarray (cell,)
        Correlation of the footprint with the movie's mean at the cell's transients, -1 to 1.
    cnn_probability : ndarray (cell,)
        Probability of being a cell by the classifier; NaN where it was not asked.
    accepted : ndarray of bool (cell,)
        The decision.
    size : ndarray (cell,), optional
        Area above a fifth of the maximum, in discs of the typical cell's radius; NaN where not
        known.
    reasons : ndarray of uint16 (cell,), optional
        Bits of `evaluation.decision.Reason`, why it is rejected; 0 where it is accepted.
    pairs : ndarray of int64 (pair, 2), optional
        Cells that overlap, by their index, the first below the second.
    overlap : ndarray (pair,), optional
        Part of the smaller one's area that lies inside the other, 0 to 1.
    triggered : scipy.sparse.csc_array (pixel, cell), optional
        The movie's mean at the cell's largest transients without background and neighbours, in the
        movie's unit, around its footprint.

    Raises
    ------
    ValueError
        If the scores are not all of the same cells.
    """

    snr: Floats
    spatial_correlation: Floats
    cnn_probability: Floats
    accepted: NDArray[np.bool_]
    size: Floats = None  # type: ignore[assignment]
    reasons: NDArray[np.uint16] = None  # type: ignore[assignment]
    pairs: NDArray[np.int64] = None  # type: ignore[assignment]
    overlap: Floats = None  # type: ignore[assignment]
    triggered: sp.csc_array | None = None

    def __post_init__(self) -> None:
        cells = len(self.accepted)
        absent = {
            "size": np.full(cells, np.nan),
            "reasons": np.where(self.accepted, 0, 1),
            "pairs": np.zeros((0, 2)),
            "overlap": np.zeros(0),
        }
        for name, dtype in QUALITY_TYPES.items():
            value = getattr(self, name)
            value = absent[name] if value is None else value
            object.__setattr__(self, name, np.ascontiguousarray(value, dtype))
        self._check()

    def _check(self) -> None:
        shapes = {name: getattr(self, name).shape for name in PER_CELL}
        if set(shapes.values()) != {(len(self.accepted),)}:
            raise ValueError(f"scores of different shapes: {shapes}")
        if self.pairs.shape != (len(self.overlap), 2):
            raise ValueError(f"{len(self.overlap)} overlaps but pairs {self.pairs.shape}")
        if self.triggered is not None and self.triggered.shape[1] != self.n_cells:
            raise ValueError(f"{self.n_cells} cells, {self.triggered.shape[1]} triggered images")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.accepted)


def _columns(matrix: sp.csc_array) -> sp.csc_array:
    columns = sp.csc_array(matrix, dtype=np.float32)
    return columns if columns.has_sorted_indices else columns.sorted_indices()


def _rows(name: str, array: Floats) -> Floats:
    rows = np.ascontiguousarray(array, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"{name} have {rows.ndim} axes; they are (cell, time)")
    return rows
