"""The networks, read from their files and run with NumPy.

Importing TensorFlow takes seconds and more than half a gigabyte of memory; all that these networks
are is matrix products, and the results are those of Keras to single precision.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from napari_calcium.spikes.features import N_FEATURES
from napari_calcium.spikes.network import AFTER, BEFORE

__all__ = ["Conditioned", "Published", "network_of", "read_network"]

Floats = NDArray[np.float32]
Layer = tuple[Floats, Floats]

ROWS = 512
"""Frames of one matrix product: what they need stays in the cache."""


@dataclass(frozen=True)
class Conditioned:
    """A network of `network.build_conditioned`.

    Parameters
    ----------
    layers : mapping of str to (kernel, bias)
        The weights, by the names of the layers.
    dilations : tuple of int
        Of the convolutions, in frames.
    mean, sd : ndarray of float32 (feature,)
        What the statistics are normalised by.
    """

    layers: Mapping[str, Layer]
    dilations: tuple[int, ...]
    mean: Floats
    sd: Floats

    def __call__(self, trace: Floats, features: Floats) -> Floats:
        """Return spikes per frame, not smoothed.

        Parameters
        ----------
        trace : ndarray of float32 (time, 2)
            See `features.channels`.
        features : ndarray of float32 (feature,)
            See `features.trace_features`.

        Returns
        -------
        ndarray of float32 (time,)
        """
        sd = np.maximum(self.sd, np.float32(1e-7))
        told: Floats = ((features - self.mean) / sd).astype(np.float32)
        for name in ("told_0", "told_1"):
            told = np.maximum(self._dense(name, told), np.float32(0))
        values = _convolve(trace, *self.layers["first"])
        for i, dilation in enumerate(self.dilations):
            seen = _convolve(
                self._adapted(values, told, str(i)), *self.layers[f"conv_{i}"], dilation
            )
            np.maximum(seen, 0, out=seen)
            values += self._dense(f"mix_{i}", seen)
        seen = np.maximum(self._dense("last", self._adapted(values, told, "last")), 0)
        rate = np.logaddexp(self._dense("rate", seen)[:, 0], np.float32(0))
        return np.asarray(rate * np.exp(self._dense("gain", told)), np.float32)

    def _dense(self, name: str, values: Floats) -> Floats:
        kernel, bias = self.layers[name]
        found = values @ kernel
        found += bias
        return found

    def _adapted(self, values: Floats, told: Floats, name: str) -> Floats:
        scaled = values * (self._dense(f"scale_{name}", told) + np.float32(1))
        scaled += self._dense(f"shift_{name}", told)
        return np.maximum(scaled, 0, out=scaled)


@dataclass(frozen=True)
class Published:
    """A network of `network.build_published`.

    Parameters
    ----------
    layers : mapping of str to (kernel, bias)
        The weights, by the names of the layers.
    """

    layers: Mapping[str, Layer]

    def __call__(self, dff: Floats) -> Floats:
        """Return smoothed spikes per frame.

        Parameters
        ----------
        dff : ndarray of float32 (time,)
            dF/F as a fraction.

        Returns
        -------
        ndarray of float32 (time,)
            That of the first 32 and the last 31 frames takes dF/F to be 0 beyond the ends.
        """
        values = np.pad(dff, (BEFORE, AFTER))[:, None]
        for name in ("conv_0", "conv_1"):
            values = np.maximum(_convolve(values, *self.layers[name], padded=False), 0)
        values = np.maximum(values[:-1], values[1:])
        values = np.maximum(_convolve(values, *self.layers["conv_2"], 2, padded=False), 0)
        values = np.maximum(values[:-2], values[2:])
        kernel, bias = self.layers["dense"]
        values = np.maximum(values @ kernel + bias, 0)
        return _convolve(values, *self.layers["rate"], 4, padded=False)[:, 0]


def read_network(path: str | Path) -> Conditioned | Published:
    """Read a network that was trained here.

    Parameters
    ----------
    path : path
        A ``.keras`` file.

    Returns
    -------
    Conditioned or Published

    Raises
    ------
    OSError, KeyError, ValueError, zipfile.BadZipFile
        If the file holds no such network.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        stored = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(stored, "r") as file:
        weights = {
            str(group["vars"].attrs["name"]): [
                np.asarray(group["vars"][str(i)], np.float32) for i in range(len(group["vars"]))
            ]
            for group in file["layers"].values()
        }
    return _network(weights, _dilations([one["config"] for one in config["config"]["layers"]]))


def network_of(model: Any) -> Conditioned | Published:
    """Return a Keras model of `network` as it is run here.

    Parameters
    ----------
    model : keras.Model
        Of `network.build_conditioned` or `network.build_published`.
    """
    weights = {
        layer.name: [np.asarray(one, np.float32) for one in layer.get_weights()]
        for layer in model.layers
    }
    return _network(weights, _dilations([layer.get_config() for layer in model.layers]))


def _network(
    weights: Mapping[str, list[Floats]], dilations: tuple[int, ...]
) -> Conditioned | Published:
    layers = {name: (found[0], found[1]) for name, found in weights.items() if len(found) == 2}
    if "conv_2" not in layers:
        raise ValueError("its layers are those of no network for spike inference")
    if "normalise" not in weights:
        return Published(layers)
    mean, variance = weights["normalise"][:2]
    if mean.size != N_FEATURES:
        raise ValueError(f"it is told of {mean.size} statistics and not of {N_FEATURES}")
    return Conditioned(layers, dilations, mean.ravel(), np.sqrt(variance.ravel()))


def _dilations(layers: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the dilations of the convolutions, in order."""
    found = {one["name"]: one["dilation_rate"] for one in layers if "dilation_rate" in one}
    named = sorted(
        (name for name in found if name.startswith("conv_")), key=lambda name: int(name[5:])
    )
    return tuple(int(np.ravel(found[name])[0]) for name in named)


def _convolve(
    values: Floats, kernel: Floats, bias: Floats, dilation: int = 1, padded: bool = True
) -> Floats:
    """Convolve (time, channel) with taps (tap, channel, filter), zeros beyond the ends or cut."""
    taps, n_channels, n_filters = kernel.shape
    reach = dilation * (taps - 1)
    if padded:
        values = np.pad(values, ((reach // 2, reach - reach // 2), (0, 0)))
    n_frames = len(values) - reach
    table = kernel.reshape(taps * n_channels, n_filters)
    found = np.empty((n_frames, n_filters), np.float32)
    patches = np.empty((min(ROWS, n_frames), taps, n_channels), np.float32)
    for start in range(0, n_frames, ROWS):
        n = min(ROWS, n_frames - start)
        for tap in range(taps):
            first = start + tap * dilation
            patches[:n, tap] = values[first : first + n]
        np.matmul(patches[:n].reshape(n, -1), table, out=found[start : start + n])
    found += bias
    return found
