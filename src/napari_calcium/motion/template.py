"""The template: what a frame without motion looks like, and how far frames differ from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.motion.correlation import finite
from napari_calcium.motion.piecewise import Grid, PiecewiseFilter
from napari_calcium.motion.resampling import resample
from napari_calcium.motion.rigid import RigidFilter, chance_agreement
from napari_calcium.movie import Movie, blocks
from napari_calcium.shifts import Shifts

if TYPE_CHECKING:
    from napari_calcium.motion.correction import MotionCorrectionParameters

__all__ = [
    "Reference",
    "estimate_reference",
    "make_reference",
    "mean_of_samples",
    "sampled_frames",
    "unusable",
]

FEWEST_FRAMES = 10
"""Frames without which there is no telling the scene from its noise."""

SEED_PART = 0.2
"""Part of the sampled frames that the first template is the mean of."""

RUNS = 10
"""Places in a recording at which frames are sampled; each is one read of chunks on disk."""

FRAMES_PER_RUN = 128
"""Frames of each: so they are stored together."""

LOCAL_TEMPLATES = 20
"""Parts of the recording whose means the median is taken of, when the template is renewed."""

SATURATED = 0.25
"""Part of the pixels that have the frame's highest value, above which it is saturated."""

FEW_VALUES = 16
"""Frames with at most so many different values are too coarse to be called saturated."""

SETTLED = 0.02
"""Change of the shifts from one pass to the next, rms, at which passes end, px."""

COARSE = 3.0
"""Blur by which the pattern of a camera's pixels goes and cells stay, px."""

LEAST_NOISE = 1e-3
"""Part of the power of frames that counts as noise even where they all agree."""

LEAST_ALIKE = 0.4
"""Agreement with the frames' own image that is enough for any template: of blurred ones and of
single dim frames it is 0.56 and more, of other scenes at most 0.33; measured from 37 x 53 px on."""

JUDGED = 4096
"""Pixels by which a frame is judged."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What frames are compared with.

    Parameters
    ----------
    template : ndarray (y, x) or (z, y, x), float32
        What a frame without motion looks like, in the movie's unit.
    compared : ndarray (y, x) or (z, y, x), float32, optional
        The image that frames are compared with, in their unit and as sharp as they are, where that
        is not the template.
    rigid_noise, patch_noise : ndarray (y, x frequency), float32, optional
        Power of what frames and patches have and the template has not.
    coarse_motion : float
        How many times as large the motion is if only coarse detail is looked at; far above 1 where
        fine detail does not move with the tissue, as the pattern of a camera's pixels; NaN where
        that could not be told.
    """

    template: Floats
    compared: Floats | None = None
    rigid_noise: Floats | None = None
    patch_noise: Floats | None = None
    coarse_motion: float = float("nan")

    @property
    def volume(self) -> Floats:
        """What frames are compared with, as planes (z, y, x)."""
        image = self.template if self.compared is None else self.compared
        return image if image.ndim == 3 else image[None]

    def rigid_filter(self, parameters: MotionCorrectionParameters) -> RigidFilter:
        """Return what finds the shifts of whole frames."""
        return RigidFilter.of(
            self.volume,
            parameters.max_shift,
            self.rigid_noise,
            max_shift_z=parameters.max_shift_z,
            high_pass=parameters.high_pass,
            smoothing=parameters.smoothing,
            upsampling=parameters.upsampling,
        )

    def piecewise_filter(self, parameters: MotionCorrectionParameters) -> PiecewiseFilter:
        """Return what finds the shifts of patches."""
        grid = Grid.over(self.volume.shape, parameters.patch_size, parameters.patch_overlap)
        return PiecewiseFilter.of(
            self.volume,
            grid,
            parameters.max_deviation,
            self.patch_noise,
            parameters.high_pass,
            parameters.smoothing,
        )


def estimate_reference(
    movie: Movie,
    parameters: MotionCorrectionParameters,
    template: NDArray[Any] | None = None,
) -> Delayed:
    """Return lazily what the frames of a movie are compared with.

    Parameters
    ----------
    movie : Movie
        The recording.
    parameters : MotionCorrectionParameters
        `template_frames` evenly spaced frames are read, so the memory needed does not depend on
        the recording's length; see `make_reference`. Each of `template_updates` reads the whole
        movie: the frames are moved, and the median over 20 parts of the recording of the means of
        their frames is the next template.
    template : ndarray (y, x) or (z, y, x), optional
        The template, if there is one already; it stays as it is.

    Returns
    -------
    Delayed of Reference
        The template and the noise.

    Raises
    ------
    InputError
        If the movie has fewer than 10 frames and no template is given, or the given one is not of
        the movie's field.

    Examples
    --------
    >>> import dask.array as da
    >>> from napari_calcium.motion.correction import MotionCorrectionParameters
    >>> movie = Movie(da.random.random((300, 37, 53), chunks=100), frame_rate=30.0)
    >>> estimate_reference(movie, MotionCorrectionParameters()).compute().template.shape
    (37, 53)
    """
    check_template(movie, template)
    samples = sampled_frames(movie, parameters.template_frames)
    reference = delayed(make_reference, pure=True)(samples, parameters, template)
    for _ in range(parameters.template_updates if template is None else 0):
        reference = _renewed(movie, reference, parameters)
    return reference


def check_template(movie: Movie, template: NDArray[Any] | None) -> None:
    """Raise `InputError` where a movie and a template do not go together."""
    if template is None and movie.n_frames < FEWEST_FRAMES:
        frames = "1 frame" if movie.n_frames == 1 else f"{movie.n_frames} frames"
        raise InputError(
            f"the movie has {frames} but a template is made from at least {FEWEST_FRAMES}; "
            "give a template or set method to none"
        )
    if template is not None and template.shape != tuple(movie.field):
        raise InputError(
            f"the template is {_size(template.shape)} px but the field is {_size(movie.field)} px; "
            "give a template of the same field"
        )
    if template is not None and not (np.isfinite(template).any() and np.ptp(finite(template)) > 0):
        raise InputError("the template is the same everywhere; give an image of the field")


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
    """Return n frames in lazy runs (k, y, x), evenly spaced in each of up to 10 places.

    Parameters
    ----------
    movie : Movie
        The recording.
    n : int
        Number of frames; fewer where the movie, or what is read of it, is not as long.

    Raises
    ------
    InputError
        If the movie has no frames.

    Examples
    --------
    >>> import dask.array as da
    >>> frames = da.arange(300).reshape(300, 1, 1)
    >>> [part.compute().ravel().tolist() for part in sampled_frames(Movie(frames, 1.0), 6)]
    [[25, 75, 125], [175, 225], [275]]
    """
    if movie.n_frames == 0:
        raise InputError("the movie has 0 frames; give one with at least 1 frame")
    runs = list(blocks(movie.n_frames, FRAMES_PER_RUN))
    read = [runs[run] for run in _evenly(len(runs), RUNS)]
    frames = np.concatenate([np.arange(run.start, run.stop) for run in read])
    chosen = frames[_evenly(len(frames), n)]
    inside = [chosen[(chosen >= run.start) & (chosen < run.stop)] - run.start for run in read]
    return [
        movie.apply(np.take, those, 0, time=run)
        for run, those in zip(read, inside, strict=True)
        if len(those)
    ]


def _evenly(n: int, count: int) -> NDArray[np.int64]:
    """Return the middles of as many equal parts of a range, all of it if there are not as many.

    Examples
    --------
    >>> _evenly(10, 3).tolist(), _evenly(2, 3).tolist()
    ([1, 5, 8], [0, 1])
    """
    count = min(count, n)
    return (2 * np.arange(count) + 1) * n // (2 * count)


def make_reference(
    samples: Sequence[NDArray[Any]],
    parameters: MotionCorrectionParameters,
    template: NDArray[Any] | None = None,
) -> Reference:
    """Return what frames are compared with, made from some of them.

    The first template is the mean of the fifth of the frames that are most alike (Pachitariu et al.
    2017, doi:10.1101/061507). Each pass compares all frames with the template, moves them by their
    shifts less the median shift, and takes their mean as the next, until the shifts change by less
    than 0.02 px; where patches move, a last pass moves those. What the moved frames have on top of
    the template is the noise.

    Parameters
    ----------
    samples : sequence of ndarray (k, y, x) or (k, z, y, x)
        Frames, joined along the first axis. Values that are not finite count as the mean of their
        frame; blank and saturated frames do not count, nor frames that agree with the template no
        better than noise does.
    parameters : MotionCorrectionParameters
        `max_shift`, `template_passes` and what concerns patches are used.
    template : ndarray (y, x) or (z, y, x), optional
        The template, if there is one already. Frames are compared with what the samples make
        without it, laid over it as frames are: a given one may be blurred by motion. Only fewer
        than 10 samples are compared with the given one itself.

    Returns
    -------
    Reference
        The template, of the parts that no frame saw copies of the nearest; and the noise.

    Raises
    ------
    InputError
        If all frames are blank or saturated, or a given template has nothing in common with them.

    Examples
    --------
    >>> from napari_calcium.motion.correction import MotionCorrectionParameters
    >>> scene = np.random.default_rng(0).normal(size=(60, 70)).astype(np.float32)
    >>> frames = [scene[None, 5 + i : 45 + i, 5:65] for i in (0, 1, 2, 1, 1)]
    >>> rigid = MotionCorrectionParameters(method="rigid", max_shift=5)
    >>> found = make_reference(frames, rigid).template
    >>> bool(np.allclose(found[5:-5], scene[11:41, 5:65], atol=1e-3))
    True
    """
    stack = _usable(np.concatenate(list(samples)))
    if template is None:
        return _own_reference(stack, parameters)
    template = finite(np.asarray(template, np.float32))
    in_unit = _in_unit(template, _mean([stack]))
    if len(stack) < FEWEST_FRAMES:
        reference = Reference(template, in_unit)
        return _with_noise(reference, as_planes(stack), parameters, parameters.method)
    own = _own_reference(stack, parameters)
    moved = _laid_over(own, replace(own, template=in_unit), parameters)
    return replace(own, template=template, compared=moved)


def _own_reference(stack: NDArray[Any], parameters: MotionCorrectionParameters) -> Reference:
    """Return the reference that frames make without being given a template."""
    alike = _most_alike(stack)
    first = _mean([stack[alike[: max(1, round(SEED_PART * len(stack)))]]])
    reference = Reference(first)
    found = reference.rigid_filter(parameters)
    powers = [found.power(frame) for frame in as_planes(stack)]
    reference = replace(reference, rigid_noise=np.mean(powers, axis=0))  # none is aligned yet
    piecewise, before = parameters.method == "piecewise", None
    for number in range(parameters.template_passes):
        shifts, agree = _rigid_shifts(stack, reference, parameters, centred=True)
        last = number + 1 == parameters.template_passes or _settled(shifts.rigid, before)
        kept = stack[agree], shifts.of_frames(agree)
        method = parameters.method if last else "rigid"
        reference = _next(reference, *kept, parameters, method)
        if last:
            break
        before = shifts.rigid
    coarse = _coarse_motion(stack, reference, parameters)
    reference = replace(reference, coarse_motion=coarse)
    if piecewise:
        shifts, agree = _piecewise_shifts(stack, reference, parameters, centred=True)
        kept = stack[agree], shifts.of_frames(agree)
        reference = _next(reference, *kept, parameters, parameters.method)
    return reference


def _in_unit(template: Floats, mean: Floats) -> Floats:
    """Return a template brought to the unit of a mean of frames."""
    contrast = template.astype(np.float64) - template.mean(dtype=np.float64)
    gain = float((contrast * mean).sum() / (contrast**2).sum())
    gain = gain if gain > 0 else float(mean.std() / template.std())
    return np.asarray(gain * contrast + mean.mean(dtype=np.float64), np.float32)


def _laid_over(own: Reference, given: Reference, parameters: MotionCorrectionParameters) -> Floats:
    """Return the image that frames make of themselves, moved to where a given one has it.

    A given template is often blurred by motion; frames are found better with one that is not.
    """
    image, found = own.template[None], given.rigid_filter(parameters)
    rigid, (agreement,) = found.shifts(as_planes(image))
    if agreement < min(LEAST_ALIKE, chance_agreement(found)):
        raise InputError(
            "the template agrees with the frames no better than noise does; "
            "give one of the same field, or none"
        )
    field = own.template.shape
    shifts = Shifts(rigid[:, 3 - len(field) :], field)
    if parameters.method == "piecewise":
        patches = given.piecewise_filter(parameters)
        shifts = with_patches(shifts, patches.shifts(as_planes(image), rigid), patches.grid)
    moved: Floats = resample(image, shifts)[0]
    return moved


def _coarse_motion(
    stack: NDArray[Any], reference: Reference, parameters: MotionCorrectionParameters
) -> float:
    """Return the ratio of the shifts seen in coarse detail to those seen in all."""
    coarse = replace(
        parameters,
        smoothing=max(COARSE, parameters.smoothing),
        high_pass=parameters.high_pass or 4 * COARSE,
    )
    fine, rough = (
        _rigid_shifts(stack, reference, each, centred=True)[0].rigid[:, -2:].ravel()
        for each in (parameters, coarse)
    )
    moved = np.abs(fine) > np.median(np.abs(fine))
    if parameters.smoothing >= COARSE or not moved.any() or np.abs(fine).max() < SETTLED:
        return float("nan")
    return float(np.median(rough[moved] / fine[moved]))


def _settled(shifts: Floats, before: Floats | None) -> bool:
    """Whether another pass would change next to nothing."""
    return before is not None and float(np.sqrt(np.mean((shifts - before) ** 2))) < SETTLED


def unusable(frames: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which frames show nothing: without finite values, constant, or saturated.

    Parameters
    ----------
    frames : ndarray (n, y, x) or (n, z, y, x)
        Frames in any real type; about 4096 of their pixels are looked at first.

    Returns
    -------
    ndarray of bool (n,)
        Saturated is a frame of which a quarter has its highest value, if it has more than 16.

    Examples
    --------
    >>> frames = np.arange(3 * 37 * 53).reshape(3, 37, 53) % 999
    >>> frames[1], frames[2, 10:] = 5, 4095
    >>> unusable(frames).tolist()
    [False, True, True]
    """
    step = max(1, int(np.sqrt(frames[0].size / JUDGED))) if len(frames) else 1
    return np.array([_unusable(frame, frame[..., ::step, ::step]) for frame in frames], bool)


def _unusable(frame: NDArray[Any], some: NDArray[Any]) -> bool:
    known = some[np.isfinite(some)]
    if not known.size or known.min() == known.max():
        rest = frame[np.isfinite(frame)]
        return not rest.size or bool(rest.min() == rest.max())
    at_top = float((known == known.max()).mean())
    return at_top > SATURATED and len(np.unique(known)) > FEW_VALUES


def _usable(stack: NDArray[Any]) -> NDArray[Any]:
    """Return the frames that show something, finite."""
    blank = unusable(stack)
    if blank.all():
        raise InputError(
            f"all {len(stack)} frames looked at are blank, saturated or without numbers; "
            "check the recording, or set method to none"
        )
    return finite(stack[~blank])


def as_planes(frames: NDArray[Any]) -> NDArray[Any]:
    """Return frames as (n, z, y, x)."""
    return frames[:, None] if frames.ndim == 3 else frames


def _rigid_shifts(
    stack: NDArray[Any],
    reference: Reference,
    parameters: MotionCorrectionParameters,
    centred: bool,
) -> tuple[Shifts, NDArray[np.bool_]]:
    """Return the shifts of frames, their median 0 if so wished, and which agree at all."""
    found = reference.rigid_filter(parameters)
    rigid, agreement = found.shifts(as_planes(stack))
    agree = agreement >= min(chance_agreement(found), float(np.median(agreement)))
    if centred:
        rigid = rigid - np.median(rigid[agree], axis=0).astype(np.float32)
    field = reference.template.shape
    return Shifts(rigid[:, 3 - len(field) :], field), agree


def _piecewise_shifts(
    stack: NDArray[Any],
    reference: Reference,
    parameters: MotionCorrectionParameters,
    centred: bool,
) -> tuple[Shifts, NDArray[np.bool_]]:
    """Return the shifts of the patches of frames, as `_rigid_shifts`."""
    shifts, agree = _rigid_shifts(stack, reference, parameters, centred=False)
    found = reference.piecewise_filter(parameters)
    rigid = np.zeros((len(stack), 3), np.float32)
    rigid[:, 3 - shifts.rigid.shape[1] :] = shifts.rigid
    patches = found.shifts(as_planes(stack), rigid)
    patches = found.without_noise(patches, agree)
    if centred:
        patches = patches - np.median(patches[agree], axis=0).astype(np.float32)
    return with_patches(shifts, patches, found.grid), agree


def with_patches(shifts: Shifts, patches: Floats, grid: Grid) -> Shifts:
    """Return shifts of frames with those of their patches (n, z, grid_y, grid_x, 2)."""
    piecewise = patches if len(shifts.field) == 3 else patches[:, 0]
    return replace(shifts, piecewise=piecewise, grid_y=grid.y, grid_x=grid.x)


def _next(
    reference: Reference,
    stack: NDArray[Any],
    shifts: Shifts,
    parameters: MotionCorrectionParameters,
    method: str,
) -> Reference:
    """Return the template that moved frames make, and the noise around it."""
    mean = _Mean(stack.shape[1:])
    moved = (
        mean.add(frame, shifts.of_frames(slice(index, index + 1)))
        for index, frame in enumerate(stack)
    )
    found = _filters(reference, parameters, method)
    powers = _powers(found, moved)
    reference = replace(reference, template=mean.image())
    return _less_still(reference, found, powers)


def _with_noise(
    reference: Reference,
    frames: NDArray[Any],
    parameters: MotionCorrectionParameters,
    method: str,
) -> Reference:
    """Return the reference with the power of what frames (n, z, y, x) have and it has not."""
    found = _filters(reference, parameters, method)
    return _less_still(reference, found, _powers(found, frames))


def _filters(
    reference: Reference, parameters: MotionCorrectionParameters, method: str
) -> list[RigidFilter | PiecewiseFilter]:
    rigid = reference.rigid_filter(parameters)
    return [rigid, reference.piecewise_filter(parameters)] if method == "piecewise" else [rigid]


def _powers(
    found: Sequence[RigidFilter | PiecewiseFilter], frames: Iterable[NDArray[Any]]
) -> list[Floats]:
    """Return the mean power of frames (z, y, x) as each filter sees them."""
    total, count = [np.zeros((), np.float32) for _ in found], 0
    for frame in frames:
        total = [sum_ + each.power(frame) for sum_, each in zip(total, found, strict=True)]
        count += 1
    return [sum_ / np.float32(count) for sum_ in total]


def _less_still(
    reference: Reference,
    found: Sequence[RigidFilter | PiecewiseFilter],
    powers: Sequence[Floats],
) -> Reference:
    """Return the reference with the noise: power of frames less that of what does not change."""
    still = [each.power(reference.volume) for each in found]
    noises = [
        np.maximum(power - steady, np.float32(LEAST_NOISE) * power)
        for power, steady in zip(powers, still, strict=True)
    ]
    return replace(
        reference,
        rigid_noise=noises[0],
        patch_noise=noises[1] if len(noises) > 1 else reference.patch_noise,
    )


class _Mean:
    """The mean of moved frames over those that saw a place, or of copies where none did."""

    def __init__(self, field: tuple[int, ...]) -> None:
        self._total, self._copies = np.zeros(field), np.zeros(field)
        self._count = np.zeros(field[-2:], np.int64)
        self._n = 0

    def add(self, frame: NDArray[Any], shifts: Shifts) -> Floats:
        """Move one frame, count it in, and return it (z, y, x)."""
        moved = resample(frame[None].astype(np.float32), shifts)
        seen = shifts.valid_region()
        self._total[..., *seen] += moved[0][..., *seen]
        self._count[seen] += 1
        self._copies += moved[0]
        self._n += 1
        planes: Floats = as_planes(moved)[0]
        return planes

    def total(self) -> NDArray[np.float64]:
        """Return the sum over the frames, as if all had seen every place."""
        mean = np.where(self._count > 0, self._total / np.maximum(self._count, 1), np.nan)
        return np.where(self._count > 0, mean * self._n, self._copies)

    def image(self) -> Floats:
        """Return the mean."""
        return np.asarray(self.total() / max(1, self._n), np.float32)


def _renewed(movie: Movie, reference: Delayed, parameters: MotionCorrectionParameters) -> Delayed:
    """Return lazily the reference after all frames were compared with it."""
    cut = list(movie.blocks())
    size = -(-len(cut) // LOCAL_TEMPLATES)
    means = []
    for group in blocks(len(cut), size):
        parts = [movie.apply(_local_sum, reference, parameters, time=block) for block in cut[group]]
        means.append(delayed(_local_mean, pure=True)(parts))
    return delayed(_median, pure=True)(reference, means)


def _local_sum(
    frames: NDArray[Any], reference: Reference, parameters: MotionCorrectionParameters
) -> tuple[NDArray[Any], int]:
    """Return the sum of the frames of a run, moved, and their number."""
    stack = finite(frames[~unusable(frames)])
    if not len(stack):
        return np.zeros(frames.shape[1:]), 0
    by_method = _piecewise_shifts if parameters.method == "piecewise" else _rigid_shifts
    shifts, agree = by_method(stack, reference, parameters, centred=False)
    mean = _Mean(stack.shape[1:])
    for index in np.flatnonzero(agree):
        mean.add(stack[index], shifts.of_frames(slice(index, index + 1)))
    return mean.total(), int(agree.sum())


def _local_mean(parts: Sequence[tuple[NDArray[Any], int]]) -> NDArray[Any] | None:
    count = sum(n for _, n in parts)
    return np.sum([total for total, _ in parts], axis=0) / count if count else None


def _median(reference: Reference, means: Sequence[NDArray[Any] | None]) -> Reference:
    known = [mean for mean in means if mean is not None]
    if not known:
        return reference
    return replace(reference, template=np.median(known, axis=0).astype(np.float32))


def _mean(frames: Sequence[NDArray[Any]]) -> Floats:
    """Mean over the first axis of arrays (k, ...)."""
    total = sum(part.sum(axis=0, dtype=np.float64) for part in frames)
    mean: Floats = np.asarray(total / sum(map(len, frames)), np.float32)
    return mean


def _most_alike(stack: NDArray[Any]) -> NDArray[np.int64]:
    """Order the frames by their correlation with the one that is most like its nearest."""
    images = np.stack([_binned(frame) for frame in as_planes(stack)]).reshape(len(stack), -1)
    correlation = images @ images.T
    nearest = np.sort(correlation, axis=1)[:, -max(2, round(SEED_PART * len(stack))) :]
    centre = np.argmax(nearest.mean(axis=1))
    return np.argsort(-correlation[centre], kind="stable")


def _binned(frame: NDArray[Any]) -> Floats:
    """Frame (z, y, x) of half the size with mean 0 and norm 1, or 0 if it is constant."""
    height, width = (max(1, n // 2) for n in frame.shape[1:])
    even = frame[:, : 2 * height, : 2 * width].astype(np.float32)
    image: Floats = even[:, ::2] + even[:, 1::2] if even.shape[1] > 1 else even
    image = image[..., ::2] + image[..., 1::2] if image.shape[2] > 1 else image
    image -= image.mean(dtype=np.float64)
    norm = np.linalg.norm(image)
    return image / norm if norm > 0 else image


def _size(field: tuple[int, ...]) -> str:
    return " x ".join(map(str, field))
