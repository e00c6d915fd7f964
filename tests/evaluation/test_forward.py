"""Models run with NumPy, against Keras itself."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.evaluation import forward
from napari_calcium.evaluation.forward import UnknownLayerError, read_forward
from napari_calcium.keras_models import import_keras

pytestmark = pytest.mark.tensorflow

SINGLE_PRECISION = 1e-5
"""Sums of some thousand products of single precision, in another order."""

FIELD = (13, 18)


def random_images(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(n, *FIELD, 2)).astype(np.float32)


def plain(keras: Any) -> list[Any]:
    layers = keras.layers
    return [
        layers.Rescaling(0.5, 0.1),
        layers.Conv2D(5, 3, padding="same", activation="relu"),
        layers.Dropout(0.5),
        layers.MaxPooling2D(),
        layers.Conv2D(4, (2, 5), padding="same", use_bias=False),
        layers.Activation("relu"),
        layers.Flatten(),
        layers.Dense(7, activation="relu"),
        layers.Dense(1, activation="sigmoid"),
    ]


def others(keras: Any) -> list[Any]:
    layers = keras.layers
    return [
        layers.Conv2D(6, (3, 4), padding="valid", activation="sigmoid"),
        layers.MaxPooling2D((2, 3)),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, use_bias=False),
    ]


def with_strides(keras: Any) -> list[Any]:
    return [keras.layers.Conv2D(3, 3, strides=2), keras.layers.Flatten()]


def with_normalization(keras: Any) -> list[Any]:
    return [keras.layers.Flatten(), keras.layers.BatchNormalization()]


def with_tanh(keras: Any) -> list[Any]:
    return [keras.layers.Flatten(), keras.layers.Dense(2, activation="tanh")]


def with_overlap(keras: Any) -> list[Any]:
    return [keras.layers.MaxPooling2D(3, strides=1), keras.layers.Flatten()]


def saved(make: Callable[[Any], list[Any]], path: Path, *, functional: bool) -> Any:
    """A model of random weights, biases too, and its file."""
    keras = import_keras()
    keras.utils.set_random_seed(3)
    inputs = keras.layers.Input((*FIELD, 2))
    if functional:
        values = inputs
        for layer in make(keras):
            values = layer(values)
        model = keras.Model(inputs, values)
    else:
        model = keras.Sequential([inputs, *make(keras)])
    rng = np.random.default_rng(4)
    model.set_weights([rng.normal(0, 0.3, each.shape) for each in model.get_weights()])
    model.save(path)
    return model


@pytest.mark.parametrize("make", [plain, others])
@pytest.mark.parametrize("functional", [True, False])
def test_as_keras_does(make: Any, functional: bool, tmp_path: Path) -> None:
    model = saved(make, tmp_path / "m.keras", functional=functional)
    images = random_images(21)
    found = read_forward(tmp_path / "m.keras")
    expected = model.predict(images, verbose=0)
    assert found.input_shape == (*FIELD, 2)
    assert found(images).dtype == np.float32
    np.testing.assert_allclose(found(images), expected, atol=SINGLE_PRECISION)
    assert np.ptp(expected) > 0.01


def test_an_image_is_told_alone_what_it_is_among_others(tmp_path: Path) -> None:
    """To the last bit: whatever their number and order."""
    saved(plain, tmp_path / "m.keras", functional=True)
    found, images = read_forward(tmp_path / "m.keras"), random_images(forward.BATCH * 2 + 3)
    together = found(images)
    for index in (0, forward.BATCH - 1, forward.BATCH, len(images) - 1):
        np.testing.assert_array_equal(found(images[[index]])[0], together[index])
    np.testing.assert_array_equal(found(images[::-1])[::-1], together)
    assert found(images[:0]).shape[0] == 0


@pytest.mark.parametrize("make", [with_strides, with_normalization, with_tanh, with_overlap])
def test_what_is_not_known_is_left_to_keras(make: Any, tmp_path: Path) -> None:
    saved(make, tmp_path / "m.keras", functional=False)
    with pytest.raises(UnknownLayerError):
        read_forward(tmp_path / "m.keras")


def test_a_model_that_branches_is_left_to_keras(tmp_path: Path) -> None:
    keras = import_keras()
    inputs = keras.layers.Input((*FIELD, 2))
    once = keras.layers.Activation("relu")(inputs)
    model = keras.Model(inputs, keras.layers.Add()([inputs, once]))
    model.save(tmp_path / "m.keras")
    with pytest.raises(UnknownLayerError):
        read_forward(tmp_path / "m.keras")


def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_text("no archive")
    with pytest.raises(zipfile.BadZipFile):
        read_forward(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(KeyError):
        read_forward(path)


def test_tensorflow_is_not_imported(tmp_path: Path) -> None:
    saved(plain, tmp_path / "m.keras", functional=True)
    code = (
        "import sys, numpy as np; from napari_calcium.evaluation.forward import read_forward; "
        f"read_forward({str(tmp_path / 'm.keras')!r})(np.zeros((1, 13, 18, 2), 'float32')); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
