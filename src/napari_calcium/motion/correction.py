"""Motion correction of a recording: template, shifts and corrected frames as one lazy graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from napari_calcium.motion.shifts import check_max_shift, estimate_shifts, shift_frames
from napari_calcium.motion.template import estimate_template, mean_of_samples
from napari_calcium.movie import Movie, blocks
from napari_calcium.parameters import Parameters, parameter

__all__ = ["Correction", "MotionCorrectionParameters", "apply_shifts", "correct"]

FRAMES_PER_BLOCK = 128
"""Frames in a chunk of the corrected movie; that of the chunks it is stored in."""


@dataclass(frozen=True)
class MotionCorrectionParameters(Parameters):
    """Rigid motion correction.

    Parameters
    ----------
    method : str
        "rigid" moves each frame as a whole (CaImAn: pw_rigid = False; Suite2p: nonrigid = False);
        "none" leaves the frames as they are (Suite2p: do_registration = 0).
    max_shift : int
        Largest shift looked for along either axis, px, at most half the field (CaImAn:
        max_shifts; Suite2p: maxregshift, there a part of the field).
    template_frames : int
        Number of evenly spaced frames that the template is made from (Suite2p: nimg_init).
    template_passes : int
        How often these frames are registered to their own mean (CaImAn: niter_rig).
    smoothing : float
        Standard deviation of the Gaussian by which the correlation is smoothed, px; larger for
        very few photons (Suite2p: smooth_sigma).
    high_pass : float
        Standard deviation of the Gaussian whose blur is taken away before frames are compared,
        px, about the radius of a cell in one-photon recordings; 0 takes nothing away (CaImAn:
        gSig_filt; Suite2p: spatial_hp_reg).

    Examples
    --------
    >>> MotionCorrectionParameters(max_shift=0)
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: max_shift is 0 px; it must be at least 1 px
    """

    method: Literal["rigid", "none"] = parameter("rigid")
    max_shift: int = parameter(15, unit="px", minimum=1)
    template_frames: int = parameter(100, unit="frames", minimum=1)
    template_passes: int = parameter(4, minimum=1, maximum=20)
    smoothing: float = parameter(1.15, unit="px", minimum=0)
    high_pass: float = parameter(0.0, unit="px", minimum=0)

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` if shifts are to be looked for over more than half the field."""
        if self.method != "none":
            check_max_shift(self.max_shift, shape[1:])


@dataclass(frozen=True)
class Correction:
    """A corrected movie and what it was corrected by, all lazy.

    Parameters
    ----------
    movie : Movie
        The corrected recording, in the type of the original.
    shifts : dask.array.Array (time, 2), float32
        What was added to each frame's content position, px, order (y, x).
    template : Delayed of ndarray (y, x), float32
        What the frames were laid over.
    """

    movie: Movie
    shifts: da.Array
    template: Delayed


def correct(
    movie: Movie,
    parameters: MotionCorrectionParameters,
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> Correction:
    """Return lazily the movie with its motion undone.

    Parameters
    ----------
    movie : Movie
        The recording. Computing the result reads it twice, in bounded memory.
    parameters : MotionCorrectionParameters
        How; with method "none" the shifts are 0 and the frames are the movie's own.
    frames_per_block : int
        Frames in a chunk of the corrected movie, that of the chunks it will be stored in.

    Returns
    -------
    Correction
        The corrected movie, its shifts and the template.

    Raises
    ------
    InputError
        If the movie has no frames or `max_shift` is larger than half the field.

    References
    ----------
    Pnevmatikakis & Giovannucci 2017, doi:10.1016/j.jneumeth.2017.07.031.

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.ones((300, 37, 53), dtype="uint16"), frame_rate=30.0)
    >>> correction = correct(movie, MotionCorrectionParameters(max_shift=10))
    >>> correction.movie.frames.chunks
    ((128, 128, 44), (37,), (53,))
    >>> correction.shifts.shape
    (300, 2)
    """
    if parameters.method == "none":
        template = mean_of_samples(movie, parameters.template_frames)
        shifts = da.zeros((movie.n_frames, 2), dtype=np.float32, chunks=(frames_per_block, 2))
    else:
        template = estimate_template(movie, parameters)
        shifts = estimate_shifts(movie, template, parameters)
    return Correction(apply_shifts(movie, shifts, frames_per_block), shifts, template)


def apply_shifts(movie: Movie, shifts: da.Array, frames_per_block: int = FRAMES_PER_BLOCK) -> Movie:
    """Return lazily the movie with each frame moved by its shift, by one bicubic resampling.

    Parameters
    ----------
    movie : Movie
        The recording, or another channel of it.
    shifts : dask.array.Array (time, 2)
        What is added to each frame's content position, px, order (y, x).
    frames_per_block : int
        Frames in a chunk of the result, that of the chunks it will be stored in.

    Returns
    -------
    Movie
        Of the same type, rate and pixel size, in chunks of whole frames that do not depend on
        those of the input; see `shift_frames` for borders, rounding and NaN.

    Raises
    ------
    ValueError
        If there is not one shift for each frame.

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.arange(6).reshape(1, 2, 3), frame_rate=30.0)
    >>> apply_shifts(movie, da.asarray([[0.0, 1.0]])).frames.compute()
    array([[[0, 0, 1],
            [3, 3, 4]]])
    """
    if shifts.shape != (movie.n_frames, 2):
        raise ValueError(f"shifts have the shape {shifts.shape}, not ({movie.n_frames}, 2)")
    cut = list(blocks(movie.n_frames, frames_per_block))
    pieces = shifts.rechunk((frames_per_block, 2)).to_delayed().ravel()
    parts = [
        da.from_delayed(
            movie.apply(shift_frames, piece, time=block),
            shape=(block.stop - block.start, *movie.field),
            dtype=movie.frames.dtype.newbyteorder("="),
        )
        for block, piece in zip(cut, pieces, strict=True)
    ]
    return replace(movie, frames=da.concatenate(parts))
