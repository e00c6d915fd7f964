"""Motion correction of a recording: template, shifts and corrected frames as lazy graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.motion.estimation import estimate_shifts
from napari_calcium.motion.piecewise import Grid
from napari_calcium.motion.quality import combine_lazily, measure, sampling
from napari_calcium.motion.resampling import resample
from napari_calcium.motion.template import Reference, estimate_reference, mean_of_samples
from napari_calcium.movie import Movie, blocks
from napari_calcium.parameters import Parameters, parameter
from napari_calcium.shifts import Shifts

__all__ = [
    "Borders",
    "Corrected",
    "Motion",
    "MotionCorrectionParameters",
    "apply_shifts",
    "correct",
    "correct_and_measure",
    "estimate_motion",
]

FRAMES_PER_BLOCK = 128
"""Frames in a chunk of the corrected movie; that of the chunks it is stored in."""

SMALLEST_PATCH = 32
"""Patches with fewer px along a side hold hardly any of a scene, px."""

MOST_PATCHES = 2500
"""Patches of a plane whose shifts are told from their noise together, in about 200 MB."""

Borders = Literal["nearest", "minimum", "crop"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MotionCorrectionParameters(Parameters):
    """Rigid or piecewise-rigid motion correction.

    Parameters
    ----------
    method : str
        "piecewise" moves overlapping patches each by its own shift, smoothly in between (CaImAn:
        pw_rigid = True; Suite2p: nonrigid = True); "rigid" moves each frame as a whole; "none"
        leaves the frames as they are (Suite2p: do_registration = 0).
    max_shift : int
        Largest shift of a frame looked for along y and x, px, at most half the field (CaImAn:
        max_shifts; Suite2p: maxregshift, there a part of the field).
    max_shift_z : int
        Largest shift looked for along z in a recording of volumes, planes; without effect on one
        plane.
    patch_size : int
        Side of a patch, px (CaImAn: strides + overlaps; Suite2p: block_size). A field that is
        smaller has one patch of its size.
    patch_overlap : int
        Least overlap of neighbouring patches, px (CaImAn: overlaps).
    max_deviation : float
        Largest deviation of a patch from its frame's shift, px (CaImAn: max_deviation_rigid;
        Suite2p: maxregshiftNR).
    template_frames : int
        Number of evenly spaced frames that the template is made from (Suite2p: nimg_init).
    template_passes : int
        How often these frames are registered to their own mean (CaImAn: niter_rig).
    template_updates : int
        How often the template is made anew from all frames of the recording, as the median of the
        means of its parts; each reads the whole movie once more.
    template_file : str
        An image (.tif or .npy) of the field to lay the frames over; empty for one made from the
        frames (CaImAn: template; Suite2p: refImg).
    upsampling : int
        Shifts are multiples of 1 / upsampling px; the peak of the correlation is climbed and not
        searched on a grid, so a finer step costs nothing (CaImAn: upsample_factor_fft = 10;
        Suite2p: subpixel = 10).
    high_pass : float
        Standard deviation of the Gaussian whose blur is taken away before frames are compared,
        px, about the radius of a cell in one-photon recordings; 0 takes nothing away (CaImAn:
        gSig_filt; Suite2p: spatial_hp_reg).
    smoothing : float
        Standard deviation of the Gaussian that frames are blurred by before they are compared, px;
        2 to 3 where the camera has a pattern of its own that does not move with the tissue
        (Suite2p: smooth_sigma). Noise needs none: each frequency counts by what noise it has.
    borders : str
        What comes in from outside of the field: "nearest" copies the pixel at the border (CaImAn:
        border_nan = "copy"), "minimum" takes the lowest value of the frame (CaImAn: border_nan =
        "min"), "crop" cuts the movie to what every frame saw.

    Examples
    --------
    >>> MotionCorrectionParameters(max_shift=0)
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: max_shift is 0 px; it must be at least 1 px
    """

    method: Literal["piecewise", "rigid", "none"] = parameter("piecewise")
    max_shift: int = parameter(15, unit="px", minimum=1)
    max_shift_z: int = parameter(2, unit="planes", minimum=0)
    patch_size: int = parameter(64, unit="px", minimum=SMALLEST_PATCH)
    patch_overlap: int = parameter(16, unit="px", minimum=0)
    max_deviation: float = parameter(3.0, unit="px", above=0)
    template_frames: int = parameter(100, unit="frames", minimum=10)
    template_passes: int = parameter(4, minimum=1, maximum=20)
    template_updates: int = parameter(0, minimum=0, maximum=10)
    template_file: str = ""
    upsampling: int = parameter(1024, minimum=1)
    high_pass: float = parameter(0.0, unit="px", minimum=0)
    smoothing: float = parameter(0.0, unit="px", minimum=0, maximum=10)
    borders: Literal["nearest", "minimum", "crop"] = parameter("nearest")

    def check(self) -> None:
        """Raise `InputError` if patches overlap by more than half, or move by too much of it."""
        if 2 * self.patch_overlap > self.patch_size:
            raise InputError(
                f"patch_overlap is {self.patch_overlap} px; "
                f"it must be at most half of patch_size, {self.patch_size} px"
            )
        if 4 * self.max_deviation > self.patch_size:
            raise InputError(
                f"max_deviation is {self.max_deviation:g} px; "
                f"it must be at most a quarter of patch_size, {self.patch_size} px"
            )

    def files(self) -> tuple[str, ...]:
        """Return the path of the template, if one is given."""
        return (self.template_file,) if self.template_file else ()

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` if shifts are too large for the field, or patches too many."""
        if self.method == "none":
            return
        field = shape[-2:]
        if 2 * self.max_shift > min(field):
            raise InputError(
                f"max_shift is {self.max_shift} px but the field is {field[0]} x {field[1]} px; "
                f"set max_shift to at most {min(field) // 2} px"
            )
        grid = Grid.over((1, *field), self.patch_size, self.patch_overlap)
        patches = len(grid.tops) * len(grid.lefts)
        if self.method == "piecewise" and patches > MOST_PATCHES:
            raise InputError(
                f"patch_size is {self.patch_size} px and cuts the field of {field[0]} x {field[1]} "
                f"px into {patches} patches; make it larger, for at most {MOST_PATCHES} patches"
            )


@dataclass(frozen=True)
class Motion:
    """The motion of a movie, all lazy.

    Parameters
    ----------
    shifts : Delayed of Shifts
        What undoes it.
    template : Delayed of ndarray (y, x) or (z, y, x), float32
        What the frames were laid over.
    quality : Delayed of MotionQuality
        Measures of the movie as it is.
    coarse_motion : Delayed of float
        See `Reference`.
    """

    shifts: Delayed
    template: Delayed
    quality: Delayed
    coarse_motion: Delayed


@dataclass(frozen=True)
class Corrected:
    """A corrected movie and how good it is, lazy.

    Parameters
    ----------
    movie : Movie
        The movie.
    quality : Delayed of MotionQuality
        Measures of it, taken while its frames are computed.
    """

    movie: Movie
    quality: Delayed


def estimate_motion(
    movie: Movie,
    parameters: MotionCorrectionParameters,
    template: NDArray[Any] | None = None,
) -> Motion:
    """Return lazily the motion of a movie.

    Parameters
    ----------
    movie : Movie
        The recording. Computing the result reads it once and some of its frames twice, in memory
        that does not grow with its length.
    parameters : MotionCorrectionParameters
        How; with method "none" the shifts are 0. `template_file` is not read here.
    template : ndarray (y, x) or (z, y, x), optional
        What the frames are to be laid over; made from the movie if not given.

    Returns
    -------
    Motion
        Shifts, template and measures.

    Raises
    ------
    InputError
        If `max_shift` is larger than half the field, the movie has too few frames to make a
        template, or the given one is of another field; when computed, if all frames are blank.

    References
    ----------
    Pnevmatikakis & Giovannucci 2017, doi:10.1016/j.jneumeth.2017.07.031.

    Examples
    --------
    >>> movie = Movie(da.random.random((300, 37, 53), chunks=100), frame_rate=30.0)
    >>> motion = estimate_motion(movie, MotionCorrectionParameters())
    >>> motion.shifts.compute().piecewise.shape
    (300, 1, 1, 2)
    """
    parameters.check_movie((movie.n_frames, *movie.field))
    if parameters.method == "none":
        reference = delayed(Reference)(mean_of_samples(movie, parameters.template_frames))
    else:
        reference = estimate_reference(movie, parameters, template)
    shifts, measurements = estimate_shifts(movie, reference, parameters)
    quality = combine_lazily(measurements, reference.template)
    return Motion(shifts, reference.template, quality, reference.coarse_motion)


def correct(
    movie: Movie,
    parameters: MotionCorrectionParameters,
    template: NDArray[Any] | None = None,
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> tuple[Movie, Motion]:
    """Return lazily the movie with its motion undone, and its motion.

    Parameters
    ----------
    movie, parameters, template
        As in `estimate_motion`. How large a movie with `borders` "crop" will be is known only once
        its shifts are computed, so here it has to be another: see `apply_shifts`.
    frames_per_block : int
        Frames in a chunk of the corrected movie, that of the chunks it will be stored in.

    Returns
    -------
    movie : Movie
        The corrected movie.
    motion : Motion
        Its shifts and template.

    Raises
    ------
    InputError
        As `estimate_motion`, and if `borders` is "crop".

    Examples
    --------
    >>> movie = Movie(da.random.random((300, 37, 53), chunks=100), frame_rate=30.0)
    >>> corrected, motion = correct(movie, MotionCorrectionParameters(max_shift=10))
    >>> corrected.frames.chunks
    ((128, 128, 44), (37,), (53,))
    """
    motion = estimate_motion(movie, parameters, template)
    return apply_shifts(movie, motion.shifts, parameters.borders, frames_per_block), motion


def apply_shifts(
    movie: Movie,
    shifts: Shifts | Delayed,
    borders: Borders = "nearest",
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> Movie:
    """Return lazily the movie with each frame moved by its shifts, by one bicubic resampling.

    Parameters
    ----------
    movie : Movie
        The recording, or another channel or another file of it, or a crop whose shifts were cropped
        with it.
    shifts : Shifts or Delayed of Shifts
        One for each frame.
    borders : {"nearest", "minimum", "crop"}
        What comes in from outside of the field: see `MotionCorrectionParameters`. "crop" takes
        shifts that are computed.
    frames_per_block : int
        Frames in a chunk of the result, that of the chunks it will be stored in.

    Returns
    -------
    Movie
        Of the same type, rate and pixel size, in chunks of whole frames that do not depend on
        those of the input; see `resample` for rounding and NaN.

    Raises
    ------
    InputError
        If the shifts are of another number of frames or another field, or "crop" leaves nothing or
        is asked of shifts that are not computed.

    Examples
    --------
    >>> movie = Movie(da.arange(6).reshape(1, 2, 3), frame_rate=30.0)
    >>> shifts = Shifts(np.array([[0.0, 1.0]], np.float32), field=(2, 3))
    >>> apply_shifts(movie, shifts).frames.compute()
    array([[[0, 0, 1],
            [3, 3, 4]]])
    """
    field = _field_left(movie, shifts, borders)
    region = _region(shifts, borders)
    parts = [
        movie.apply(_moved, _of_frames(shifts, block), borders, region, time=block)
        for block in blocks(movie.n_frames, frames_per_block)
    ]
    return _movie_of(movie, field, parts, frames_per_block)


def correct_and_measure(
    movie: Movie,
    shifts: Shifts,
    template: NDArray[Any],
    borders: Borders = "nearest",
    frames_per_block: int = FRAMES_PER_BLOCK,
) -> Corrected:
    """Return lazily what `apply_shifts` does, and how good it is, in one pass.

    Parameters
    ----------
    movie, shifts, borders, frames_per_block
        As in `apply_shifts`.
    template : ndarray (y, x) or (z, y, x)
        What the frames were laid over, of the whole field.

    Returns
    -------
    Corrected
        The movie and its measures, which are of what every frame saw.
    """
    field = _field_left(movie, shifts, borders)
    region = _region(shifts, borders)
    seen = np.ascontiguousarray(_where_seen(template, shifts)[..., *region])
    options = (borders, region, seen, sampling(movie.n_frames))
    parts = [
        movie.apply(_moved_and_measured, shifts.of_frames(block), block.start, *options, time=block)
        for block in blocks(movie.n_frames, frames_per_block)
    ]
    quality = combine_lazily([part[1] for part in parts], seen)
    moved = [part[0] for part in parts]
    return Corrected(_movie_of(movie, field, moved, frames_per_block), quality)


def _movie_of(
    movie: Movie, field: tuple[int, ...], parts: list[Delayed], frames_per_block: int
) -> Movie:
    """Return the movie that lazy runs of moved frames make."""
    kind = movie.frames.dtype.newbyteorder("=")
    runs = [
        da.from_delayed(part, shape=(block.stop - block.start, *field), dtype=kind)
        for part, block in zip(parts, blocks(movie.n_frames, frames_per_block), strict=True)
    ]
    return replace(movie, frames=da.concatenate(runs))


def _of_frames(shifts: Shifts | Delayed, block: slice) -> Any:
    """Return the shifts of a run of frames, lazy where the shifts are."""
    return shifts.of_frames(block)


def _region(shifts: Shifts | Delayed, borders: Borders) -> tuple[slice, slice]:
    """Return what part (y, x) of the moved frames is kept."""
    if borders == "crop" and isinstance(shifts, Shifts):
        return shifts.valid_region()
    return slice(None), slice(None)


def _where_seen(template: NDArray[Any], shifts: Shifts) -> Floats:
    """Return the template with NaN where not every frame saw the scene.

    As it is where that would leave less than half of the field along an axis.
    """
    region = shifts.valid_region()
    parts = [part.stop - part.start for part in region]
    if any(2 * part < n for part, n in zip(parts, shifts.field[-2:], strict=True)):
        return np.asarray(template, np.float32)
    seen = np.full(template.shape, np.nan, np.float32)
    seen[..., *region] = template[..., *region]
    return seen


def _field_left(movie: Movie, shifts: Shifts | Delayed, borders: Borders) -> tuple[int, ...]:
    """Return the field of the moved frames.

    Raises
    ------
    InputError
        As `apply_shifts`.
    """
    if isinstance(shifts, Shifts):
        _check_same(movie, shifts)
    if borders != "crop":
        return tuple(movie.field)
    if not isinstance(shifts, Shifts):
        raise InputError(
            "borders is 'crop' but how much is left is not known before the shifts are computed; "
            "compute the shifts first, or set borders to nearest"
        )
    sizes = tuple(part.stop - part.start for part in shifts.valid_region())
    if min(sizes) < 1:
        raise InputError(
            "borders is 'crop' but no pixel was seen by every frame; set borders to nearest"
        )
    return (*movie.field[:-2], *sizes)


def _check_same(movie: Movie, shifts: Shifts) -> None:
    if shifts.n_frames != movie.n_frames:
        raise InputError(
            f"the shifts are of {shifts.n_frames} frames but the movie has {movie.n_frames}; "
            "give the movie they were found in, or another channel of it"
        )
    if shifts.field != tuple(movie.field):
        known, given = (" x ".join(map(str, field)) for field in (shifts.field, movie.field))
        raise InputError(
            f"the shifts are of a field of {known} px but the movie's is {given} px; "
            "crop the shifts as the movie was cropped"
        )


def _moved(
    frames: NDArray[Any], shifts: Shifts, borders: Borders, region: tuple[slice, slice]
) -> NDArray[Any]:
    """Return a run of frames moved by their shifts."""
    if borders != "minimum":
        return resample(frames, shifts)[..., *region]
    singles = [slice(index, index + 1) for index in range(len(frames))]
    moved = [resample(frames[one], shifts.of_frames(one), _lowest(frames[one])) for one in singles]
    return np.concatenate(moved)


def _moved_and_measured(
    frames: NDArray[Any],
    shifts: Shifts,
    start: int,
    borders: Borders,
    region: tuple[slice, slice],
    template: NDArray[Any],
    every: int,
) -> tuple[NDArray[Any], Any]:
    """Return a run of frames moved by their shifts, and measures of them."""
    moved = _moved(frames, shifts, borders, region)
    return moved, measure(moved, template, start, every)


def _lowest(frame: NDArray[Any]) -> float | None:
    """Return the lowest finite value; None where there is none."""
    known = frame[np.isfinite(frame)]
    return float(known.min()) if known.size else None
