"""An edit of cells: which go, which come, whose traces are estimated anew, and what comes of it.

`napari_calcium.extraction.curation` drafts it from the components alone,
`napari_calcium.extraction.local_fit` estimates from the movie what it asks for, and `finished` puts
both together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.deconvolution.foopsi import DeconvolvedTraces

__all__ = ["Denoise", "Edit", "finished", "selected", "static_image"]

Floats = NDArray[np.float32]
Denoise = Callable[[Floats, float], DeconvolvedTraces]

OF_CELLS = ("traces", "residuals", "deconvolved", "baseline", "noise", "time_constants")
"""What `Components` has for each cell beside its footprint and its identity."""


def _no_cells() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Edit:
    """What becomes of the cells, before anything is read of the movie.

    Parameters
    ----------
    components : Components
        The cells as they are.
    footprints : scipy.sparse.csc_array (pixel, new)
        Unit footprints of the cells that come, or what they are to be fitted from.
    removed : ndarray of int
        Indices of the cells that go.
    changed : ndarray of int
        Indices of cells that stay but whose traces are to be estimated anew.
    support : scipy.sparse.csc_array (pixel, new), optional
        Where the cells that come may reach if they are to be fitted.
    alike : bool
        Whether the footprints to start from are all the same, still to be told apart.

    Examples
    --------
    The second of three cells in a row goes, and the third, which it overlaps, is to be estimated:

    >>> footprints = sp.csc_array(np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1.0]]))
    >>> still = Background(sp.csc_array(np.ones((4, 1))), np.ones((1, 5)))
    >>> cells = Components(footprints, (2, 2), *[np.zeros((3, 5))] * 3, still, np.arange(3))
    >>> edit = Edit(cells, footprints[:, :0], removed=np.array([1]))
    >>> edit.kept, edit.touched
    (array([0, 2]), array([2]))
    """

    components: Components
    footprints: sp.csc_array
    removed: NDArray[np.int64] = field(default_factory=_no_cells)
    changed: NDArray[np.int64] = field(default_factory=_no_cells)
    support: sp.csc_array | None = None
    alike: bool = False

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indices of the cells that stay, in their order."""
        return np.setdiff1d(np.arange(self.components.n_cells), self.removed)

    @property
    def reach(self) -> sp.csc_array:
        """Where the cells that come may have light, (pixel, new)."""
        return self.footprints if self.support is None else self.support

    @property
    def touched(self) -> NDArray[np.int64]:
        """Indices of the cells that stay and share light with what comes, goes or changes."""
        own = self.components.footprints
        gone_or_changed = own[:, np.concatenate([self.removed, self.changed])]
        both = sp.hstack([gone_or_changed, self.reach], format="csc")
        overlap = sp.csc_array(both).T @ own
        shared = np.asarray(overlap.sum(axis=0)).ravel() > 0
        shared[self.changed] = True
        return self.kept[shared[self.kept]]

    @property
    def neighbours(self) -> sp.csc_array:
        """Footprints of the cells that are touched, (pixel, touched)."""
        return sp.csc_array(self.components.footprints[:, self.touched])

    @property
    def affected(self) -> sp.csc_array:
        """Footprints whose traces are to be estimated: neighbours, then new cells."""
        return sp.csc_array(sp.hstack([self.neighbours, self.footprints], format="csc"))


def selected(components: Components, index: NDArray[np.integer] | Sequence[int]) -> Components:
    """Return some of the cells, in the order asked for; the background is the same.

    Parameters
    ----------
    components : Components
        Cells.
    index : array of int, or of bool (cell,)
        Their places, not their identities.

    Returns
    -------
    Components
        Copies, each cell with its own identity.

    Examples
    --------
    >>> still = Background(sp.csc_array(np.ones((6, 1))), np.ones((1, 5)))
    >>> some = [np.zeros((3, 5))] * 3
    >>> cells = Components(sp.csc_array(np.eye(6, 3)), (2, 3), *some, still, np.array([4, 7, 9]))
    >>> selected(cells, [2, 0]).cell_id
    array([9, 4])
    """
    places = np.arange(components.n_cells)[np.asarray(index, None if len(index) else int)]
    parts = {name: getattr(components, name)[places] for name in (*OF_CELLS, "cell_id")}
    return replace(components, footprints=components.footprints[:, places], **parts)


def static_image(background: Background) -> Floats:
    """Return the static image, (pixel,), in the movie's unit."""
    return np.asarray(background.footprints[:, [0]].toarray().ravel())


def finished(
    edit: Edit,
    raw: Floats,
    denoise: Denoise,
    frame_rate: float,
    next_id: int | None = None,
    settle: bool = True,
) -> Components:
    """Return all cells after an edit: those affected with new traces, and new ones at the end.

    Parameters
    ----------
    edit : Edit
        Its footprints as they are to be.
    raw : ndarray (touched + new, time)
        Traces of the affected cells.
    denoise : callable
        Takes the noise out of them, given the frame rate.
    frame_rate : float
        Hz.
    next_id : int, optional
        Identity of the first new cell; by default the largest that there is, and 1.
    settle : bool
        Whether what the affected cells show at rest is moved into the static image.
    """
    if not len(raw):
        return selected(edit.components, edit.kept)
    denoised, footprints = denoise(raw, frame_rate), edit.affected
    background = edit.components.background
    if settle:
        background = _settled(background, footprints @ denoised.baseline)
    values = {
        "traces": denoised.calcium - denoised.baseline[:, None],
        "residuals": raw - denoised.calcium,
        "deconvolved": denoised.activity,
        "baseline": footprints.T @ static_image(background),
        "noise": denoised.noise,
        "time_constants": denoised.time_constants,
    }
    first = int(edit.components.cell_id.max(initial=-1)) + 1 if next_id is None else next_id
    new_ids = first + np.arange(edit.footprints.shape[1])
    kept = edit.components.footprints[:, edit.kept]
    return replace(
        edit.components,
        footprints=sp.csc_array(sp.hstack([kept, edit.footprints], format="csc")),
        background=background,
        cell_id=np.append(edit.components.cell_id[edit.kept], new_ids),
        **{name: _joined(edit, name, values[name]) for name in OF_CELLS},
    )


def _settled(background: Background, change: Floats) -> Background:
    """Return the background, its static image changed by what cells show at rest, (pixel,)."""
    image = static_image(background) + np.nan_to_num(change).astype(np.float32)
    parts = [sp.csc_array(image.reshape(-1, 1)), background.footprints[:, 1:]]
    return Background(sp.csc_array(sp.hstack(parts, format="csc")), background.traces)


def _joined(edit: Edit, name: str, values: Floats) -> Any:
    """Return what is known of the kept cells, and of those affected the values given."""
    before, n_kept, n_touched = getattr(edit.components, name), len(edit.kept), len(edit.touched)
    rows = np.empty((n_kept + len(values) - n_touched, *before.shape[1:]), np.float32)
    np.take(before, edit.kept, axis=0, out=rows[:n_kept], mode="clip")
    rows[np.searchsorted(edit.kept, edit.touched)] = values[:n_touched]
    rows[n_kept:] = values[n_touched:]
    return rows
