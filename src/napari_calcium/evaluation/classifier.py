"""The classifier: from its footprint alone, the probability that a component is a cell.

The network that comes with the package was trained by `napari-calcium train-classifier`; its card,
classifier.json beside it, says on what, and how well it does. It is a Keras model that is run
without TensorFlow; a model of a person's own, of layers that only Keras knows, is run by Keras.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.errors import UNREADABLE, InputError
from napari_calcium.evaluation.crops import SIDE, footprint_crops
from napari_calcium.evaluation.forward import Forward, UnknownLayerError, read_forward
from napari_calcium.evaluation.network import ask
from napari_calcium.footprints import at_border
from napari_calcium.keras_models import import_keras

__all__ = ["SHIPPED", "check_classifier", "cnn_probability", "model_digest"]

SHIPPED = Path(__file__).with_name("classifier.keras")
"""The model that comes with the package."""

TAKES = (None, SIDE, SIDE, 1)
"""Shape of what a model is given: any number of crops, of one channel."""

CELLS_AT_ONCE = 1024
"""Footprints whose crops are held in memory together."""

LOCK = threading.Lock()
"""Held while a model is loaded or asked: what TensorFlow sets up first is set up once."""

Model = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def check_classifier(path: str = "") -> None:
    """Check that the classifier can be asked, without importing TensorFlow.

    Parameters
    ----------
    path : str
        A .keras file; the one that comes with the package if empty.

    Raises
    ------
    InputError
        If the file is not there, no .keras file, or a model that takes no crops of a footprint or
        gives no probability; or only Keras can run it and TensorFlow is not installed.
    """
    file = _file(path)
    if (plain := _plain(file)) is not None:
        _check_plain(file, plain)
        return
    if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "keras")):
        raise InputError(
            f"classifier_file {file} needs TensorFlow, which is not installed; "
            "install it with pip install tensorflow, or set classifier to off"
        )


def cnn_probability(
    footprints: sp.csc_array, shape: tuple[int, int], cell_radius: float, path: str = ""
) -> NDArray[np.float32]:
    """Return how probable it is that each footprint is that of a cell's soma.

    The probability is that of a component of which nothing else is known, taken from as many cells
    as others. It is the same, to the bit, whichever other footprints are asked with it, on one
    machine.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Weights, pixel = y * width + x.
    shape : tuple of int
        Field of view, (y, x), px.
    cell_radius : float
        Radius of a soma, px (CaImAn: about twice ``gSig``).
    path : str
        A .keras file; the one that comes with the package if empty.

    Returns
    -------
    ndarray of float32 (cell,)
        0 to 1; NaN for an empty footprint, and for one that reaches the border of the field: a cell
        that is cut there looks like half a cell.

    Raises
    ------
    InputError
        As `check_classifier`; or if TensorFlow is needed and cannot be imported, or the model takes
        no crops of a footprint or gives no probability.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173
    """
    n_cells = footprints.shape[1]
    probability = np.full(n_cells, np.nan, np.float32)
    file = _file(path)
    whole = ~at_border(footprints, shape)
    with LOCK:
        model = _model(file, model_digest(file))
        for start in range(0, n_cells, CELLS_AT_ONCE):
            run = slice(start, start + CELLS_AT_ONCE)
            crops = footprint_crops(footprints[:, run], shape, cell_radius)
            some = crops.any(axis=(1, 2)) & whole[run]
            probability[run][some] = model(crops[some])
    return probability


def _file(path: str) -> Path:
    """Return the file of a model, if there is one that may be."""
    file = Path(path).expanduser() if path else SHIPPED
    if not file.is_file():
        raise InputError(
            f"classifier_file {file} does not exist; give a .keras file that "
            "napari-calcium train-classifier wrote"
        )
    if not zipfile.is_zipfile(file):
        raise _no_model(file, "it is no .keras file")
    return file


def model_digest(file: Path) -> str:
    """Return what identifies a model: the digest of its file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _plain(file: Path) -> Forward | None:
    """Read a model that can be run without TensorFlow; None where only Keras can."""
    try:
        return read_forward(file)
    except UnknownLayerError:
        return None
    except UNREADABLE as error:
        raise _no_model(file, str(error).partition("\n")[0]) from error


@lru_cache(maxsize=2)
def _model(file: Path, digest: str) -> Model:
    """Read a model; it is read once for as long as its file stays the same."""
    plain = _plain(file)
    if plain is None:
        return _keras_model(file)
    _check_plain(file, plain)
    return lambda crops: plain(crops[..., None])[:, 0]


def _check_plain(file: Path, model: Forward) -> None:
    takes = (None, *model.input_shape)
    if takes != TAKES:
        raise _no_model(file, f"it takes {takes}")
    gives = model(np.zeros((1, *model.input_shape), np.float32)).shape
    if gives != (1, 1):
        raise _no_model(file, f"it gives {(None, *gives[1:])}")


def _keras_model(file: Path) -> Model:
    keras = import_keras()
    try:
        model = keras.saving.load_model(file, compile=False)
    except Exception as error:  # whatever may be wrong with a file of others
        raise _no_model(file, str(error).partition("\n")[0]) from error
    takes, gives = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if takes != TAKES or gives != (None, 1):
        raise _no_model(file, f"it takes {takes} and gives {gives}")
    return lambda crops: ask(model, crops)


def _no_model(path: Path, why: str) -> InputError:
    return InputError(
        f"classifier_file {path} is no classifier of crops of {SIDE} x {SIDE} px ({why}); give a "
        ".keras file that napari-calcium train-classifier wrote"
    )
