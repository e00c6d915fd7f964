"""Single images from files, such as a template."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_calcium.errors import InputError
from napari_calcium.io.tiff import UNREADABLE

__all__ = ["read_image"]

DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, TokenError)
"""What tifffile and NumPy raise on a damaged file."""


def read_image(path: str | Path) -> NDArray[Any]:
    """Read one image of a field, or one volume.

    Parameters
    ----------
    path : path
        A .tif or .tiff of one image, (y, x), or of one volume, (z, y, x); or such an array in a
        .npy file.

    Returns
    -------
    ndarray (y, x) or (z, y, x)
        In the type it has on disk; axes of length 1 are left out.

    Raises
    ------
    InputError
        If the file cannot be read as an image.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/template.npy", np.zeros((37, 53)))
    ...     read_image(f"{folder}/template.npy").shape
    (37, 53)
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"there is no image {str(path)!r}; give an existing .tif or .npy file")
    try:
        image = _read(path)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read as an image; give a .tif or .npy file") from error
    image = np.squeeze(image)
    if image.ndim not in (2, 3):
        raise InputError(
            f"{path} has the shape {image.shape}; give one image (y, x) or one volume (z, y, x)"
        )
    if image.dtype.kind not in "buif":
        raise InputError(
            f"{path} has pixels of type {image.dtype}; save it as integers or real numbers"
        )
    return image


def _read(path: Path) -> NDArray[Any]:
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    return np.asarray(tifffile.imread(path))
