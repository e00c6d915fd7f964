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
from numba import njit
from numpy.typing import NDArray

from napari_calcium.spikes.features import N_FEATURES
from napari_calcium.spikes.network import AFTER, BEFORE, WINDOW

__all__ = ["Conditioned", "Published", "network_of", "read_network"]

Floats = NDArray[np.float32]
Layer = tuple[Floats, Floats]

STRETCH = 2048
"""Frames that are inferred at a time, with what they depend on: few enough for the cache."""

ROWS = 512
"""Frames of one matrix product."""


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
        told = self._told(features)
        first_layer = self._first(told)
        reach, found = self.reach, np.empty(len(trace), np.float32)
        for start in range(0, len(trace), STRETCH):
            first, stop = max(0, start - reach), min(start + STRETCH, len(trace))
            spikes = self._stretch(trace[first : stop + reach], first_layer, told)
            found[start:stop] = spikes[start - first : stop - first]
        return found

    @property
    def reach(self) -> int:
        """Frames to either side of which what is inferred of a frame depends."""
        convolutions = [("first_0", 1), *((f"conv_{i}", d) for i, d in enumerate(self.dilations))]
        return sum(d * (len(self.layers[name][0]) // 2) for name, d in convolutions)

    def _told(self, features: Floats) -> dict[str, Floats]:
        """Return what the statistics say to each layer: scales, shifts, shares, the gain."""
        sd = np.maximum(self.sd, np.float32(1e-7))
        told: Floats = ((features - self.mean) / sd).astype(np.float32)
        for name in ("told_0", "told_1"):
            told = np.maximum(self._dense(name, told), np.float32(0))
        said = ("scale_", "shift_", "share_", "gain")
        return {name: self._dense(name, told) for name in self.layers if name.startswith(said)}

    def _first(self, told: Mapping[str, Floats]) -> Layer:
        """Return the filters of the first convolution, mixed for a trace."""
        names = [name for name in self.layers if name.startswith("first_")]
        shares = [told[name.replace("first", "share")] for name in names]
        parts = [self.layers[name] for name in names]
        kernels = [kernel * share for (kernel, _), share in zip(parts, shares, strict=True)]
        biases = [bias * share for (_, bias), share in zip(parts, shares, strict=True)]
        return np.sum(kernels, axis=0), np.sum(biases, axis=0)

    def _stretch(self, trace: Floats, first: Layer, told: Mapping[str, Floats]) -> Floats:
        """Return the spikes of a stretch of the trace, as if there were nothing beyond."""
        values = _add_bias(_convolve(trace, first[0]), first[1])
        adapted, mixed = np.empty_like(values), np.empty_like(values)
        for i, dilation in enumerate(self.dilations):
            _adapt(values, told[f"scale_{i}"], told[f"shift_{i}"], adapted)
            kernel, bias = self.layers[f"conv_{i}"]
            seen = _rectify(_convolve(adapted, kernel, dilation), bias)
            kernel, bias = self.layers[f"mix_{i}"]
            _add(values, np.matmul(seen, kernel, out=mixed), bias)
        _adapt(values, told["scale_last"], told["shift_last"], adapted)
        kernel, bias = self.layers["last"]
        rate = self._dense("rate", _rectify(adapted @ kernel, bias))[:, 0]
        return np.asarray(np.logaddexp(rate, np.float32(0)) * np.exp(told["gain"]), np.float32)

    def _dense(self, name: str, values: Floats) -> Floats:
        kernel, bias = self.layers[name]
        found = values @ kernel
        found += bias
        return found


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
        padded, found = np.pad(dff, (BEFORE, AFTER)), np.empty(len(dff), np.float32)
        for start in range(0, len(dff), STRETCH):
            stop = min(start + STRETCH, len(dff))
            found[start:stop] = self._stretch(padded[start : stop + WINDOW - 1])
        return found

    def _stretch(self, dff: Floats) -> Floats:
        """Return what all windows of a stretch give."""
        values = dff[:, None]
        for name in ("conv_0", "conv_1"):
            kernel, bias = self.layers[name]
            values = _rectify(_convolve(values, kernel, padded=False), bias)
        values = np.maximum(values[:-1], values[1:])
        kernel, bias = self.layers["conv_2"]
        values = _rectify(_convolve(values, kernel, 2, padded=False), bias)
        values = np.maximum(values[:-2], values[2:])
        kernel, bias = self.layers["dense"]
        values = _rectify(values @ kernel, bias)
        kernel, bias = self.layers["rate"]
        return _add_bias(_convolve(values, kernel, 4, padded=False), bias)[:, 0]


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
    if not {"first_0", "share_0"} <= layers.keys():
        raise ValueError("it is of an earlier design")
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


@njit(nogil=True, cache=True)
def _adapt(values, scale, shift, out):  # type: ignore[no-untyped-def]
    """Scale and shift each channel, and cut what is negative."""
    for row in range(values.shape[0]):
        for channel in range(values.shape[1]):
            value = values[row, channel] * (scale[channel] + np.float32(1)) + shift[channel]
            out[row, channel] = max(value, np.float32(0))


@njit(nogil=True, cache=True)
def _rectify(values, bias):  # type: ignore[no-untyped-def]
    """Add a bias and cut what is negative, in place."""
    for row in range(values.shape[0]):
        for channel in range(values.shape[1]):
            values[row, channel] = max(values[row, channel] + bias[channel], np.float32(0))
    return values


@njit(nogil=True, cache=True)
def _add(values, others, bias):  # type: ignore[no-untyped-def]
    """Add others and a bias to values."""
    for row in range(values.shape[0]):
        for channel in range(values.shape[1]):
            values[row, channel] += others[row, channel] + bias[channel]


def _add_bias(values: Floats, bias: Floats) -> Floats:
    values += bias
    return values


def _convolve(values: Floats, kernel: Floats, dilation: int = 1, padded: bool = True) -> Floats:
    """Convolve (time, channel) with taps (tap, channel, filter), zeros beyond the ends or cut."""
    taps, n_channels, n_filters = kernel.shape
    reach = dilation * (taps - 1)
    if padded:
        inside = values
        values = np.zeros((len(inside) + reach, n_channels), np.float32)
        values[reach // 2 : reach // 2 + len(inside)] = inside
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
    return found
