"""Networks run with NumPy, against Keras itself."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from napari_calcium.evaluation import classifier
from napari_calcium.keras_models import import_keras, save_model
from napari_calcium.spikes.features import N_FEATURES
from napari_calcium.spikes.forward import Conditioned, Published, network_of, read_network
from napari_calcium.spikes.inference import SHIPPED
from napari_calcium.spikes.network import AFTER, BEFORE, build_conditioned, build_published

pytestmark = pytest.mark.tensorflow

SINGLE_PRECISION = 1e-5
"""Sums of some hundred products of single precision, in another order; the results are about 1."""

LENGTHS = [1, 2, 9, 60, 253, 254, 513, 1025]
"""The conditioned network sees 126 + 4 frames to either side; the published one 64 in all."""


def randomised(model: Any, seed: int) -> Any:
    """The same model with random weights, biases too, and statistics to normalise by."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        weights = layer.get_weights()
        if layer.name == "normalise":
            layer.adapt(random.normal(1, 2, (99, N_FEATURES)).astype(np.float32))
        elif weights:
            size = 0.7 / np.sqrt(max(1, np.prod(weights[0].shape[:-1])))
            layer.set_weights([random.normal(0, size, one.shape) for one in weights])
    return model


@pytest.fixture(scope="module")
def conditioned() -> Any:
    return randomised(build_conditioned(), 0)


@pytest.fixture(scope="module")
def published() -> Any:
    return randomised(build_published(), 1)


def inputs(seed: int, n_frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A trace of two channels with large values here and there, and statistics."""
    random = np.random.default_rng(seed)
    trace = random.normal(0, 1, (n_frames, 2)) + 3 * (random.random((n_frames, 1)) < 0.02)
    return trace.astype(np.float32), random.normal(1, 2, N_FEATURES).astype(np.float32)


def by_keras(model: Any, trace: NDArray[np.float32], told: NDArray[np.float32]) -> Any:
    return model([trace[None], told[None]]).numpy()[0, :, 0]


def padded_by_keras(model: Any, dff: NDArray[np.float32]) -> Any:
    return model(np.pad(dff, (BEFORE, AFTER))[None, :, None]).numpy()[0, :, 0]


@pytest.mark.parametrize("n_frames", [*LENGTHS, 5000])
def test_the_conditioned_network_as_keras_does(conditioned: Any, n_frames: int) -> None:
    network = network_of(conditioned)
    assert isinstance(network, Conditioned)
    for seed in (0, 1):
        trace, told = inputs(seed, n_frames)
        expected, found = by_keras(conditioned, trace, told), network(trace, told)
        assert found.shape == (n_frames,)
        assert found.dtype == np.float32
        size = max(1.0, float(expected.max()))
        np.testing.assert_allclose(found, expected, atol=SINGLE_PRECISION * size)
        assert expected.max() > 1e-3
        assert n_frames < 60 or np.ptp(expected) > 0.05 * expected.max()


@pytest.mark.parametrize("n_frames", [*LENGTHS, 5000])
def test_the_published_network_as_keras_does(published: Any, n_frames: int) -> None:
    """0 beyond the ends, so that every frame has a rate."""
    network = network_of(published)
    assert isinstance(network, Published)
    dff = inputs(2, n_frames)[0][:, 0]
    expected, found = padded_by_keras(published, dff), network(dff)
    assert found.shape == (n_frames,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=SINGLE_PRECISION)
    assert n_frames < 60 or np.ptp(expected) > 0.05


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_as_keras_does(name: str) -> None:
    keras = import_keras()
    files = sorted(SHIPPED[name].glob("*.keras"))
    assert files
    for file in files:
        model, network = keras.models.load_model(file, compile=False), read_network(file)
        assert isinstance(network, Conditioned)
        trace, _ = inputs(3, 700)
        told = (network.mean + 0.5 * network.sd).astype(np.float32)
        expected = by_keras(model, trace, told)
        size = max(1.0, float(expected.max()))
        np.testing.assert_allclose(network(trace, told), expected, atol=SINGLE_PRECISION * size)
        assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("sizes", [{"channels": 6}, {"dilations": (1, 3, 5, 9), "taps": 3}])
def test_other_sizes(sizes: dict[str, Any]) -> None:
    model = randomised(build_conditioned(**sizes), 2)
    network = network_of(model)
    for n_frames in (5, 700):
        trace, told = inputs(4, n_frames)
        expected = by_keras(model, trace, told)
        size = max(1.0, float(expected.max()))
        np.testing.assert_allclose(network(trace, told), expected, atol=SINGLE_PRECISION * size)


def test_what_was_written_is_read(conditioned: Any, published: Any, tmp_path: Path) -> None:
    """To the bit what the model itself gives."""
    trace, told = inputs(5, 300)
    save_model(conditioned, tmp_path / "a.keras")
    save_model(published, tmp_path / "b.keras")
    first, second = read_network(tmp_path / "a.keras"), read_network(tmp_path / "b.keras")
    assert isinstance(first, Conditioned)
    assert isinstance(second, Published)
    model = network_of(conditioned)
    assert first.dilations == model.dilations == (1, 2, 4, 8, 16, 32)
    np.testing.assert_array_equal(first(trace, told), model(trace, told))
    np.testing.assert_array_equal(second(trace[:, 0]), network_of(published)(trace[:, 0]))


def test_the_input_is_left_as_it_was(conditioned: Any, published: Any) -> None:
    trace, told = inputs(6, 600)
    copies = trace.copy(), told.copy()
    network = network_of(conditioned)
    first = network(trace, told)
    network_of(published)(trace[:, 0])
    np.testing.assert_array_equal(trace, copies[0])
    np.testing.assert_array_equal(told, copies[1])
    np.testing.assert_array_equal(network(trace, told), first)


def test_large_and_constant_values_stay_finite(conditioned: Any) -> None:
    network = network_of(conditioned)
    trace, told = inputs(7, 200)
    for values in (np.zeros_like(trace), 1000 * trace):
        expected = by_keras(conditioned, values, told)
        found = network(values, told)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=SINGLE_PRECISION)


# ------------------------------------------------------------------------------- broken files


def test_what_is_no_network(tmp_path: Path) -> None:
    path = tmp_path / "member_0.keras"
    with pytest.raises(OSError, match="member_0"):
        read_network(path)
    path.write_text("no archive")
    with pytest.raises(zipfile.BadZipFile):
        read_network(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(KeyError):
        read_network(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", "nothing")
    with pytest.raises(OSError, match=r"signature|open"):
        read_network(path)


def test_networks_for_something_else(tmp_path: Path) -> None:
    with pytest.raises((KeyError, ValueError)):
        read_network(Path(classifier.__file__).with_name("classifier.keras"))
    keras = import_keras()
    layers = keras.layers
    other = keras.Sequential([layers.Input((5,)), layers.Dense(1, name="rate")])
    other.save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="no network for spike inference"):
        read_network(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="no network for spike inference"):
        network_of(other)


def test_a_network_that_is_told_of_other_statistics(conditioned: Any, tmp_path: Path) -> None:
    save_model(conditioned, tmp_path / "old.keras")
    with zipfile.ZipFile(tmp_path / "old.keras") as archive:
        config, weights = archive.read("config.json"), archive.read("model.weights.h5")
    (tmp_path / "weights.h5").write_bytes(weights)
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        for group in file["layers"].values():
            if group["vars"].attrs["name"] == "normalise":
                for name in ("0", "1"):
                    del group["vars"][name]
                    group["vars"][name] = np.ones(3, np.float32)
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("config.json", config)
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    with pytest.raises(ValueError, match=f"3 statistics and not of {N_FEATURES}"):
        read_network(tmp_path / "old.keras")


def test_tensorflow_is_not_imported() -> None:
    path = next(SHIPPED["excitatory"].glob("*.keras"))
    code = (
        "import sys, numpy as np; from napari_calcium.spikes.forward import read_network; "
        f"read_network({str(path)!r})(np.zeros((9, 2), 'f'), np.zeros({N_FEATURES}, 'f')); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
