"""The template: what a frame without motion looks like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.motion.shifts import check_max_shift, rigid_shifts, shift_frames
from napari_calcium.movie import Movie

if TYPE_CHECKING:
    from napari_calcium.motion.correction import MotionCorrectionParameters

__all__ = ["aligned_mean", "estimate_template", "mean_of_samples", "sampled_frames"]

SEED_PART = 0.2
"""Part of the sampled frames that the first template is the mean of."""

UNSEEN = 1e-3
"""Weight of a copied border pixel in the mean, so that it counts only where no frame saw."""

Floats = NDArray[np.float32]


def estimate_template(movie: Movie, parameters: MotionCorrectionParameters) -> Delayed:
    """Return lazily the template of a movie, made from evenly spaced frames.

    Parameters
    ----------
    movie : Movie
        The recording.
    parameters : MotionCorrectionParameters
        `template_frames` are read one by one, so the memory needed does not depend on the
        recording's length; see `aligned_mean` for the rest.

    Returns
    -------
    Delayed of ndarray (y, x), float32
        The template, in the movie's unit.

    Raises
    ------
    InputError
        If the movie has no frames or `max_shift` is larger than half the field.

    Examples
    --------
    >>> import dask.array as da
    >>> from napari_calcium.motion.correction import MotionCorrectionParameters
    >>> movie = Movie(da.ones((300, 37, 53), dtype="uint16"), frame_rate=30.0)
    >>> estimate_template(movie, MotionCorrectionParameters()).compute().shape
    (37, 53)
    """
    check_max_shift(parameters.max_shift, movie.field)
    return delayed(aligned_mean, pure=True)(
        sampled_frames(movie, parameters.template_frames),
        parameters.max_shift,
        parameters.template_passes,
        parameters.smoothing,
        parameters.high_pass,
    )


def mean_of_samples(movie: Movie, n: int) -> Delayed:
    """Return lazily the mean of evenly spaced frames as they are, (y, x), float32.

    Parameters
    ----------
    movie : Movie
        The recording.
    n : int
        Number of frames.

    Raises
    ------
    InputError
        If the movie has no frames.
    """
    return delayed(_mean, pure=True)(sampled_frames(movie, n))


def sampled_frames(movie: Movie, n: int) -> list[Delayed]:
    """Return n evenly spaced frames, each a lazy ndarray (1, y, x) that reads only itself.

    Parameters
    ----------
    movie : Movie
        The recording.
    n : int
        Number of frames; all of them if the movie is not longer.

    Raises
    ------
    InputError
        If the movie has no frames.

    Examples
    --------
    >>> import dask.array as da
    >>> frames = da.arange(10).reshape(10, 1, 1)
    >>> [int(f.compute()[0, 0, 0]) for f in sampled_frames(Movie(frames, 1.0), 3)]
    [1, 5, 8]
    """
    if movie.n_frames == 0:
        raise InputError("the movie has 0 frames; give one with at least 1 frame")
    n = min(n, movie.n_frames)
    centres = (2 * np.arange(n) + 1) * movie.n_frames // (2 * n)
    return [movie.read(slice(int(frame), int(frame) + 1)) for frame in centres]


def aligned_mean(
    frames: list[NDArray[Any]],
    max_shift: int,
    passes: int,
    smoothing: float = 1.15,
    high_pass: float = 0.0,
) -> Floats:
    """Return the mean of frames after they have been laid over each other.

    The first template is the mean of the fifth of the frames that are most alike (Pachitariu
    et al. 2017, doi:10.1101/061507). Each pass registers all frames to the template, moves them
    by their shifts less the median shift, and takes their mean as the next template.

    Parameters
    ----------
    frames : list of ndarray (k, y, x)
        Frames, joined along the first axis. Values that are not finite count as the mean of
        their frame.
    max_shift : int
        Largest shift looked for, px.
    passes : int
        Number of passes; 0 gives the first template.
    smoothing, high_pass : float
        As in `rigid_shifts`, px.

    Returns
    -------
    ndarray (y, x), float32
        The mean. A pixel counts the frames that saw it; one that no frame saw is a copy of the
        nearest.

    Examples
    --------
    >>> scene = np.random.default_rng(0).normal(size=(60, 70)).astype(np.float32)
    >>> frames = [scene[None, 5 + i : 45 + i, 5:65] for i in (0, 1, 2, 1, 1)]
    >>> template = aligned_mean(frames, max_shift=5, passes=2)
    >>> bool(np.allclose(template[5:-5], scene[11:41, 5:65], atol=1e-5))
    True
    """
    stack = np.concatenate(frames)
    if stack.dtype.kind == "f":
        _fill(stack)
    alike = _most_alike(stack)
    template = _mean([stack[alike[: max(1, round(SEED_PART * len(stack)))]]])
    for _ in range(passes):
        shifts = rigid_shifts(stack, template, max_shift, smoothing, high_pass)
        template = _moved_mean(stack, shifts - np.median(shifts, axis=0))
    return template


def _mean(frames: list[NDArray[Any]]) -> Floats:
    """Mean over the first axis of arrays (k, y, x)."""
    total = sum(part.sum(axis=0, dtype=np.float64) for part in frames)
    mean: Floats = np.asarray(total / sum(map(len, frames)), np.float32)
    return mean


def _fill(stack: NDArray[Any]) -> None:
    """Replace in place what is not finite by the mean of its frame, or by 0 in an empty frame."""
    for frame in stack:
        finite = np.isfinite(frame)
        if not finite.all():
            frame[~finite] = frame[finite].mean(dtype=np.float64) if finite.any() else 0


def _most_alike(stack: NDArray[Any]) -> NDArray[np.int64]:
    """Order the frames by their correlation with the one that is most like its nearest."""
    images = np.stack([_binned(frame) for frame in stack]).reshape(len(stack), -1)
    correlation = images @ images.T
    nearest = np.sort(correlation, axis=1)[:, -max(2, round(SEED_PART * len(stack))) :]
    centre = np.argmax(nearest.mean(axis=1))
    return np.argsort(-correlation[centre], kind="stable")


def _binned(frame: NDArray[Any]) -> Floats:
    """Frame of half the size with mean 0 and norm 1, or 0 if it is constant."""
    height, width = (max(1, n // 2) for n in frame.shape)
    even = frame[: 2 * height, : 2 * width].astype(np.float32)
    image: Floats = even[::2] + even[1::2] if len(even) > 1 else even
    image = image[:, ::2] + image[:, 1::2] if image.shape[1] > 1 else image
    image -= image.mean(dtype=np.float64)
    norm = np.linalg.norm(image)
    return image / norm if norm > 0 else image


def _moved_mean(stack: NDArray[Any], shifts: NDArray[Any]) -> Floats:
    """Mean of the moved frames; what a frame did not see hardly counts."""
    field = stack.shape[1:]
    total, count = np.zeros(field), np.zeros(field)
    for frame, shift in zip(stack, shifts, strict=True):
        weight = np.full(field, UNSEEN)
        weight[tuple(_seen(n, float(s)) for n, s in zip(field, shift, strict=True))] = 1
        total += weight * shift_frames(frame[None].astype(np.float32), shift[None])[0]
        count += weight
    return (total / count).astype(np.float32)


def _seen(n: int, shift: float) -> slice:
    """Pixels of a moved axis of n px that were inside the frame."""
    return slice(max(0, math.ceil(shift)), max(0, min(n, math.floor(n - 1 + shift) + 1)))
