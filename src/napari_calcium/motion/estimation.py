"""Estimation: the shifts of all frames of a movie, as one lazy pass over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.motion.quality import Measurements, measure, sampling
from napari_calcium.motion.rigid import chance_agreement
from napari_calcium.motion.template import Reference, as_planes, unusable, with_patches
from napari_calcium.movie import Movie, blocks
from napari_calcium.shifts import Shifts

if TYPE_CHECKING:
    from napari_calcium.motion.correction import MotionCorrectionParameters

__all__ = ["Estimate", "estimate_block", "estimate_shifts", "joined_shifts"]

FRAMES_PER_TASK = 128
"""Frames that one task reads: those of a chunk on disk, so that none has to be joined."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Estimate:
    """What one pass finds in a run of frames.

    Parameters
    ----------
    rigid : ndarray (n, 3), float32
        Shifts of the frames, (z, y, x), px and planes.
    agreement : ndarray (n,), float32
        How well each agrees with the template.
    blank : ndarray of bool (n,)
        Frames that show nothing.
    patches : ndarray (n, z, grid_y, grid_x, 2), float32, or None
        Shifts of the patches, px.
    measurements : Measurements
        How the frames are before they are moved.
    """

    rigid: Floats
    agreement: Floats
    blank: NDArray[np.bool_]
    patches: Floats | None
    measurements: Measurements


def estimate_shifts(
    movie: Movie, reference: Delayed, parameters: MotionCorrectionParameters
) -> tuple[Delayed, list[Delayed]]:
    """Return lazily the shifts of all frames, and what was measured of them on the way.

    Parameters
    ----------
    movie : Movie
        The recording; one task per 128 frames, whatever the movie's chunks.
    reference : Delayed of Reference
        What the frames are compared with.
    parameters : MotionCorrectionParameters
        How.

    Returns
    -------
    shifts : Delayed of Shifts
        See `joined_shifts`.
    measurements : list of Delayed of Measurements
        Of the movie as it is; one for each task, for `combine_lazily`.

    Examples
    --------
    >>> import dask.array as da
    >>> from napari_calcium.motion.correction import MotionCorrectionParameters
    >>> from napari_calcium.motion.template import estimate_reference
    >>> movie = Movie(da.random.random((300, 37, 53), chunks=100), frame_rate=30.0)
    >>> parameters = MotionCorrectionParameters(method="rigid")
    >>> reference = estimate_reference(movie, parameters)
    >>> estimate_shifts(movie, reference, parameters)[0].compute().rigid.shape
    (300, 2)
    """
    every = sampling(movie.n_frames)
    parts = [
        movie.apply(estimate_block, reference, parameters, block.start, every, time=block)
        for block in blocks(movie.n_frames, FRAMES_PER_TASK)
    ]
    shifts = delayed(joined_shifts, pure=True)(
        [delayed(_without_measurements, pure=True)(part) for part in parts],
        reference,
        parameters,
    )
    return shifts, [part.measurements for part in parts]


def estimate_block(
    frames: NDArray[Any],
    reference: Reference,
    parameters: MotionCorrectionParameters,
    start: int,
    every: int,
) -> Estimate:
    """Return what a run of frames, (n, y, x) or (n, z, y, x), shows of its motion.

    Parameters
    ----------
    frames : ndarray (n, y, x) or (n, z, y, x)
        The frames, the first of which is number `start` of the movie.
    reference : Reference
        What they are compared with.
    parameters : MotionCorrectionParameters
        How.
    start, every : int
        As in `measure`.
    """
    measurements = measure(frames, reference.template, start, every)
    n, patches = len(frames), None
    if parameters.method == "none":
        nothing = np.zeros((n, 3), np.float32)
        return Estimate(nothing, np.ones(n, np.float32), np.zeros(n, bool), None, measurements)
    volumes = as_planes(frames)
    rigid, agreement = reference.rigid_filter(parameters).shifts(volumes)
    if parameters.method == "piecewise":
        patches = reference.piecewise_filter(parameters).shifts(volumes, rigid)
    return Estimate(rigid, agreement, unusable(frames), patches, measurements)


def joined_shifts(
    parts: list[Estimate], reference: Reference, parameters: MotionCorrectionParameters
) -> Shifts:
    """Return the shifts of a movie from those of its runs of frames.

    Frames that are blank or saturated are flagged, and so are those that agree with the template
    no better than noise does and half as well as the others. Their shifts are interpolated in time.
    If they agree no better than noise altogether and seem to lie anywhere, all are flagged and left
    in place.
    Patches lose what is noise of their shifts: see `without_noise`.

    Raises
    ------
    InputError
        If all frames are flagged.
    """
    field = reference.template.shape
    rigid = np.concatenate([part.rigid for part in parts])[:, 3 - len(field) :]
    agreement = np.concatenate([part.agreement for part in parts])
    flagged = np.concatenate([part.blank for part in parts])
    if parameters.method == "none":
        return Shifts(rigid, field)
    if flagged.all():
        raise InputError(
            f"all {len(flagged)} frames are blank, saturated or without numbers; "
            "check the recording, or set method to none"
        )
    chance = chance_agreement(reference.rigid_filter(parameters))
    if _is_noise(rigid[~flagged], agreement[~flagged], chance, parameters):
        return _unmoved(len(rigid), reference, parameters)
    flagged |= agreement < min(chance, 0.5 * float(np.median(agreement[~flagged])))
    shifts = Shifts(_rounded(_interpolated(rigid, flagged), parameters), field, flagged=flagged)
    if parameters.method == "rigid":
        return shifts
    found = reference.piecewise_filter(parameters)
    patches = np.concatenate([part.patches for part in parts if part.patches is not None])
    patches = _interpolated(found.without_noise(patches, ~flagged), flagged)
    frames = shifts.rigid[:, None, None, None, -2:]
    patches = patches.clip(frames - found.max_deviation, frames + found.max_deviation)
    return with_patches(shifts, _rounded(patches, parameters), found.grid)


def _is_noise(
    rigid: Floats, agreement: Floats, chance: float, parameters: MotionCorrectionParameters
) -> bool:
    """Whether frames agree as little as frames of noise do, and lie anywhere within max_shift.

    Frames of noise agree with a template of themselves, each being a part of it, and the best of
    many lags agrees a little anyhow; measured, with two tenths to spare, from 37 x 53 px on.
    """
    samples = min(len(agreement), parameters.template_frames)
    little = 1.2 * float(np.hypot(0.42 * chance, 0.85 * samples**-0.5))
    shifts = rigid[:, -2:] - np.median(rigid[:, -2:], axis=0)
    anywhere = float(np.median(np.abs(shifts))) > 0.2 * parameters.max_shift  # 0.5 if evenly so
    return anywhere and float(np.median(agreement)) < little


def _unmoved(n: int, reference: Reference, parameters: MotionCorrectionParameters) -> Shifts:
    """Return shifts of 0 for frames all of which are flagged."""
    field = reference.template.shape
    shifts = Shifts(np.zeros((n, len(field)), np.float32), field, flagged=np.ones(n, bool))
    if parameters.method == "rigid":
        return shifts
    grid = reference.piecewise_filter(parameters).grid
    return with_patches(shifts, np.zeros((n, *grid.shape, 2), np.float32), grid)


def _without_measurements(part: Estimate) -> Estimate:
    """Let go of what only the measures need."""
    nothing: Any = None
    return Estimate(part.rigid, part.agreement, part.blank, part.patches, nothing)


def _interpolated(values: Floats, flagged: NDArray[np.bool_]) -> Floats:
    """Replace the values (n, ...) of flagged frames by those between their neighbours'."""
    if not flagged.any():
        return values
    flat = values.reshape(len(values), -1).copy()
    known, unknown = np.flatnonzero(~flagged), np.flatnonzero(flagged)
    for column in flat.T:
        column[unknown] = np.interp(unknown, known, column[known])
    return flat.reshape(values.shape)


def _rounded(values: Floats, parameters: MotionCorrectionParameters) -> Floats:
    """Round to whole parts of a px, so that rounding errors never move a frame."""
    parts = np.float32(parameters.upsampling)
    return np.asarray(np.rint(values * parts) / parts, np.float32)
