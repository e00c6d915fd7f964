"""Regions of the field from files: ImageJ ROIs, labels images, another session's footprints.

A pixel belongs to a region if its centre lies in it. Outlines are in pixels, (y, x), the centre of
the first pixel at (0, 0), as napari draws them. ImageJ counts from the first pixel's corner: what
is (x, y) there is (y - 0.5, x - 0.5) here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from roifile import ROI_SUBTYPE, ROI_TYPE, ImagejRoi
from scipy import ndimage
from skimage.draw import polygon

from napari_calcium.errors import InputError
from napari_calcium.footprints import masks
from napari_calcium.io.image import read_image
from napari_calcium.io.session import Session
from napari_calcium.io.tiff import UNREADABLE

__all__ = ["read_regions", "regions_from_labels", "regions_from_outlines", "write_regions"]

Outline = NDArray[np.float64]

CORNER = 0.5
"""Distance of a pixel's centre from its corner, from which ImageJ counts, px."""

AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
"""Kinds of ImageJ ROI that enclose pixels."""

DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, zipfile.BadZipFile)
"""What roifile and zipfile raise on a damaged file."""

FILES = "ImageJ ROIs (.zip, .roi), a labels image (.tif, .npy) or a session (.zarr)"


def read_regions(path: str | Path, shape: tuple[int, int]) -> sp.csc_array:
    """Read regions of a field.

    Parameters
    ----------
    path : path
        ImageJ ROIs that enclose pixels, several in a .zip or one in a .roi file, in the order of
        the ROI manager; a labels image, .tif or .npy, in the order of the labels; or a session
        with cells of the same field, whose footprints count from a fifth of their maximum.
    shape : tuple of int
        The field, (y, x), px.

    Returns
    -------
    scipy.sparse.csc_array (pixel, region), float32
        Ones, pixel = y * width + x; regions may overlap.

    Raises
    ------
    InputError
        If there is no such file, it is none of these or damaged, it holds no region, it is of
        another field, or one of its ROIs holds no pixel of the field.

    Examples
    --------
    >>> import tempfile
    >>> labels = np.zeros((37, 53), np.uint16)
    >>> labels[3:8, 2:6], labels[20:30, 20:40] = 7, 2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/labels.npy", labels)
    ...     read_regions(f"{folder}/labels.npy", (37, 53)).sum(axis=0)
    array([200.,  20.], dtype=float32)
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"there is no file of regions {str(path)!r}; give {FILES}")
    if path.is_dir():
        return _read_session(path, shape)
    kind = path.suffix.lower()
    if kind in (".zip", ".roi"):
        return _read_rois(path, shape)
    if kind not in (".tif", ".tiff", ".npy"):
        raise InputError(f"{path} holds no regions that can be read; give {FILES}")
    labels = read_image(path)
    _check_field(path, labels.shape, shape)
    return regions_from_labels(labels, str(path))


def write_regions(path: str | Path, outlines: Sequence[ArrayLike]) -> None:
    """Write outlines as ImageJ polygons, which `read_regions` reads as the same pixels.

    Parameters
    ----------
    path : path
        A .zip file, or a .roi file for one outline; replaced if it exists.
    outlines : sequence of array_like (point, 2)
        Points (y, x), px.

    Raises
    ------
    InputError
        If there is no outline, one has fewer than three points or a NaN, there are several for one
        .roi file, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_regions(f"{folder}/cells.zip", [[(2.5, 1.5), (2.5, 5.5), (7.5, 5.5), (7.5, 1.5)]])
    ...     np.divmod(read_regions(f"{folder}/cells.zip", (37, 53)).indices[[0, -1]], 53)
    (array([3, 7]...), array([2, 5]...))
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in (".zip", ".roi"):
        raise InputError(f"{path} is no file of ImageJ ROIs; give a name that ends with .zip")
    if not outlines or (kind == ".roi" and len(outlines) > 1):
        raise InputError(
            f"{len(outlines)} regions cannot be written to {path}; "
            "give one for a .roi file, one or more for a .zip file"
        )
    digits = len(str(len(outlines)))
    rois = {
        f"{number:0{digits}}": _roi(_points(outline, f"outline {number}"), f"{number:0{digits}}")
        for number, outline in enumerate(outlines, 1)
    }
    content = _zipped(rois) if kind == ".zip" else next(iter(rois.values()))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from error


# ---------------------------------------------------------------------------- labels and outlines


def regions_from_labels(labels: NDArray[Any], name: str = "the labels image") -> sp.csc_array:
    """Return the region of each label, in ascending order.

    Parameters
    ----------
    labels : ndarray (y, x) of integers
        0 where there is no region.
    name : str
        What the labels are called in errors.

    Returns
    -------
    scipy.sparse.csc_array (pixel, region), float32
        Ones, pixel = y * width + x.

    Raises
    ------
    InputError
        If labels are not integers or negative, there is none, or the image is a mask of several
        cells, not labels.

    Examples
    --------
    >>> regions_from_labels(np.array([[0, 5, 5], [2, 0, 5]])).toarray().T
    array([[0., 0., 0., 1., 0., 0.],
           [0., 1., 1., 0., 0., 1.]], dtype=float32)
    """
    if labels.ndim != 2:
        raise InputError(f"{name} has the shape {labels.shape}; give one image (y, x)")
    if labels.dtype.kind not in "iub":
        raise InputError(
            f"{name} holds numbers of type {labels.dtype}; save the labels as integers"
        )
    if labels.min(initial=0) < 0:
        raise InputError(f"{name} holds the label {labels.min()}; give labels from 1, 0 for none")
    pixels = np.flatnonzero(labels)
    values, columns = np.unique(labels.ravel()[pixels], return_inverse=True)
    if not len(values):
        raise InputError(f"{name} holds no region; give each cell a number from 1")
    if len(values) == 1 and _is_mask(labels):
        raise InputError(f"{name} is a mask of several cells; give each cell a number of its own")
    order = np.argsort(columns, kind="stable")
    counts = np.bincount(columns)
    return _ones(np.split(pixels[order], np.cumsum(counts)[:-1]), labels.size)


def _is_mask(labels: NDArray[Any]) -> bool:
    """Whether an image of one label is what programs save for true and false, in several parts."""
    largest = True if labels.dtype.kind == "b" else np.iinfo(labels.dtype).max
    return bool(labels.max() == largest and ndimage.label(labels, np.ones((3, 3)))[1] > 1)


def regions_from_outlines(
    outlines: Sequence[ArrayLike], shape: tuple[int, int], names: Sequence[str] | None = None
) -> sp.csc_array:
    """Return the pixels whose centres lie in each outline or on it.

    Parameters
    ----------
    outlines : sequence of array_like (point, 2)
        Points (y, x), px, to float32; the last is joined with the first. Those beyond the field
        are cut off at its border.
    shape : tuple of int
        The field, (y, x), px.
    names : sequence of str, optional
        What each outline is called in errors; by default its number from 1.

    Returns
    -------
    scipy.sparse.csc_array (pixel, region), float32
        Ones, pixel = y * width + x; regions may overlap.

    Raises
    ------
    InputError
        If an outline has fewer than three points or a NaN, or holds no pixel of the field.

    Examples
    --------
    >>> outline = [(2.5, 1.5), (2.5, 5.5), (7.5, 5.5), (7.5, 1.5)]
    >>> regions_from_outlines([outline], (37, 53)).toarray().reshape(37, 53)[3:8, 2:6].sum()
    np.float32(20.0)
    """
    names = names or [f"outline {number}" for number in range(1, len(outlines) + 1)]
    found = []
    for outline, name in zip(outlines, names, strict=True):
        inside = _filled(_points(outline, name), shape)
        _check_inside(inside, name, shape)
        found.append(np.flatnonzero(inside))
    return _ones(found, shape[0] * shape[1])


def _points(outline: ArrayLike, name: str) -> Outline:
    """Return an outline as it is stored, in float32 from the corner; `InputError` if it is none."""
    points = np.asarray(outline, np.float64)
    if points.size == 0 or points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise InputError(f"{name} has the shape {points.shape}; give three or more points (y, x)")
    if not np.isfinite(points).all():
        raise InputError(f"{name} has a point that is no number; draw it again")
    return (points + CORNER).astype(np.float32).astype(np.float64) - CORNER


def _filled(points: Outline, shape: tuple[int, int]) -> NDArray[np.bool_]:
    inside = np.zeros(shape, bool)
    inside[polygon(points[:, 0], points[:, 1], shape)] = True
    return inside


def _check_inside(inside: NDArray[np.bool_], name: str, shape: tuple[int, int]) -> None:
    if not inside.any():
        raise InputError(
            f"{name} holds no pixel of the field of {shape[0]} x {shape[1]} px; "
            "leave it out, or give regions of the same field"
        )


def _ones(pixels: Sequence[NDArray[np.integer]], size: int) -> sp.csc_array:
    """Return ones at the pixels of each region, (pixel, region)."""
    indices = np.concatenate([np.zeros(0, np.int64), *pixels])
    indptr = np.cumsum([0, *map(len, pixels)])
    data = np.ones(len(indices), np.float32)
    return sp.csc_array((data, indices, indptr), shape=(size, len(pixels)))


# ------------------------------------------------------------------------------------ ImageJ ROIs


def _read_rois(path: Path, shape: tuple[int, int]) -> sp.csc_array:
    try:
        rois = list(_rois(path))
    except DAMAGED as error:
        raise InputError(
            f"{path} cannot be read as ImageJ ROIs; save it from the ROI manager again"
        ) from error
    if not rois:
        raise InputError(f"{path} holds no ImageJ ROI; save ROIs from the ROI manager")
    found = []
    for name, roi in rois:
        inside = _roi_pixels(roi, f"ROI {roi.name or name!r} of {path}", shape)
        found.append(np.flatnonzero(inside))
    return _ones(found, shape[0] * shape[1])


def _rois(path: Path) -> Iterable[tuple[str, ImagejRoi]]:
    """Yield the ROIs of a file with their names."""
    if path.suffix.lower() == ".roi":
        yield path.stem, ImagejRoi.frombytes(path.read_bytes())
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            name = PurePosixPath(entry).name
            if name.lower().endswith(".roi") and not name.startswith("._"):  # a Mac's own files
                yield name[:-4], ImagejRoi.frombytes(archive.read(entry))


def _roi_pixels(roi: ImagejRoi, name: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where one ROI is, (y, x)."""
    if roi.roitype not in AREAS or roi.subtype == ROI_SUBTYPE.TEXT:
        kind = "text" if roi.subtype == ROI_SUBTYPE.TEXT else roi.roitype.name.lower()
        raise InputError(f"{name} is a {kind}, which encloses no pixels; delete it or draw an area")
    if roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL) and not roi.composite:
        inside = _within_bounds(roi, shape)
    else:
        inside = np.zeros(shape, bool)
        for path in _paths(roi, name):  # a path within another is a hole
            inside ^= _filled(_points(path[:, ::-1] - CORNER, name), shape)
    _check_inside(inside, name, shape)
    return inside


def _paths(roi: ImagejRoi, name: str) -> list[NDArray[np.float64]]:
    """Return the closed paths of a polygon or a composite, points (x, y) from the corner."""
    try:
        paths = roi.coordinates(multi=True)
    except DAMAGED as error:
        raise InputError(f"{name} has curves or is damaged; make it a polygon in ImageJ") from error
    return [np.asarray(path, np.float64) for path in paths if len(path) > 2]


def _within_bounds(roi: ImagejRoi, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a rectangle or oval, (y, x); a rectangle's round corners are filled."""
    left, top = float(roi.left), float(roi.top)
    width, height = float(roi.right) - left, float(roi.bottom) - top
    if roi.subpixelrect and roi.widthd > 0 and roi.heightd > 0:
        left, top, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
    if not (width > 0 and height > 0):
        return np.zeros(shape, bool)
    # from -1 at one side to 1 at the other
    y = (np.arange(shape[0]) + CORNER - top) * (2 / height) - 1
    x = (np.arange(shape[1]) + CORNER - left) * (2 / width) - 1
    if roi.roitype == ROI_TYPE.OVAL:
        return np.asarray(y[:, None] ** 2 + x**2 <= 1)
    return np.outer(np.abs(y) <= 1, np.abs(x) <= 1)


def _roi(points: Outline, name: str) -> bytes:
    corners = (points[:, ::-1] + CORNER).astype(np.float32)
    return ImagejRoi.frompoints(corners, name=name).tobytes()


def _zipped(files: dict[str, bytes]) -> bytes:
    """Return a .zip of ROIs, equal for equal ROIs."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.roi"), data, zipfile.ZIP_DEFLATED)
    return content.getvalue()


# ---------------------------------------------------------------------------------------- session


def _read_session(path: Path, shape: tuple[int, int]) -> sp.csc_array:
    if not Session.is_session(path):
        raise InputError(f"{path} is a folder but no session; give {FILES}")
    session = Session(path)
    footprints = session.footprints()
    _check_field(path, tuple(session.group_attrs("source_extraction")["field"]), shape)
    if not footprints.shape[1]:
        raise InputError(f"{path} holds no cell; give a session in which cells were found")
    return masks(footprints)


def _check_field(path: Path, found: tuple[int, ...], shape: tuple[int, int]) -> None:
    if found != shape:
        size = " x ".join(map(str, found))
        raise InputError(
            f"{path} is of a field of {size} px but this one is {shape[0]} x {shape[1]} px; "
            "give regions of the same field"
        )
