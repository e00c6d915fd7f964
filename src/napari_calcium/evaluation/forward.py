"""Keras models of plain layers, run without TensorFlow.

Importing TensorFlow takes seconds and more than half a gigabyte of memory, and all that it would do
for a small network are a few matrix products. A model whose layers follow one after the other and
are known here is read from its file and run with NumPy; the result is that of Keras to single
precision.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["Forward", "UnknownLayerError", "read_forward"]

Floats = NDArray[np.float32]
Step = Callable[[Floats], Floats]
Weights = list[Floats]

BATCH = 8
"""Images taken at a time: what is made of them stays in the cache."""


class UnknownLayerError(ValueError):
    """A model has a layer that only Keras can run."""


@dataclass(frozen=True)
class Forward:
    """A model as a chain of functions.

    Parameters
    ----------
    steps : tuple of callable
        Each takes what the one before returns, (image, ...).
    input_shape : tuple of int
        What the first takes, without the axis of the images.
    """

    steps: tuple[Step, ...]
    input_shape: tuple[int, ...]

    def __call__(self, images: Floats) -> Floats:
        """Return what the model makes of images, whatever their number and order.

        Parameters
        ----------
        images : ndarray of float32 (image, *input_shape)

        Returns
        -------
        ndarray of float32 (image, ...)
        """
        found = []
        for start in range(0, len(images), BATCH):
            batch = np.ascontiguousarray(images[start : start + BATCH], np.float32)
            for step in self.steps:
                batch = step(batch)
            found.append(batch)
        return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def read_forward(path: str | Path) -> Forward:
    """Read a model that Keras saved.

    Parameters
    ----------
    path : path
        A ``.keras`` file.

    Returns
    -------
    Forward

    Raises
    ------
    UnknownLayerError
        If the layers do not follow one after the other, or one is not known here.
    OSError, KeyError, ValueError, zipfile.BadZipFile
        If the file is no model.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        stored = io.BytesIO(archive.read("model.weights.h5"))
    layers = _chain(config)
    with h5py.File(stored, "r") as file:
        weights = _weights(file["layers"])
        steps = [_step(layer, weights[layer["config"]["name"]]) for layer in layers[1:]]
    shape = layers[0]["config"]["batch_shape"][1:]
    return Forward(tuple(step for step in steps if step is not None), tuple(map(int, shape)))


def _chain(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the layers of a model in the order in which they are applied."""
    layers: list[dict[str, Any]] = config["config"]["layers"]
    if config.get("class_name") not in ("Functional", "Sequential"):
        raise UnknownLayerError(f"a model of the class {config.get('class_name')}")
    if layers[0]["class_name"] != "InputLayer":
        raise UnknownLayerError("a model without an input layer")
    if config["class_name"] == "Functional":
        for before, layer in pairwise(layers):
            if _inputs(layer.get("inbound_nodes")) != [before["config"]["name"]]:
                raise UnknownLayerError(f"{layer['config']['name']} does not follow the one before")
    return layers


def _inputs(nodes: Any) -> list[str]:
    """Return the names of the layers whose results a layer takes, wherever they are told."""
    if isinstance(nodes, dict):
        history = nodes.get("config", {}).get("keras_history")
        return [history[0]] if history else _inputs(list(nodes.values()))
    if isinstance(nodes, list | tuple):
        return [name for node in nodes for name in _inputs(node)]
    return []


def _weights(layers: h5py.Group) -> dict[str, Weights]:
    """Return the weights of each layer by its name, which is an attribute of where they are."""
    stored = (layer["vars"] for layer in layers.values())
    return {
        str(group.attrs["name"]): [np.asarray(group[str(i)], np.float32) for i in range(len(group))]
        for group in stored
    }


def _step(layer: Mapping[str, Any], weights: Weights) -> Step | None:
    """Return what a layer does; None for one that does nothing here."""
    kind, config = layer["class_name"], layer["config"]
    if kind in ("Dropout", "SpatialDropout2D", "GaussianNoise"):
        return None
    if kind not in LAYERS:
        raise UnknownLayerError(f"a layer of the class {kind}")
    step = LAYERS[kind](config, weights)
    activation = _activation(config)
    return step if activation is None else lambda values: activation(step(values))


def _activation(config: Mapping[str, Any]) -> Step | None:
    name = config.get("activation", "linear")
    if name == "linear":
        return None
    if name not in ACTIVATIONS:
        raise UnknownLayerError(f"the activation {name}")
    return ACTIVATIONS[name]


def _convolution(config: Mapping[str, Any], weights: Weights) -> Step:
    kernel, *bias = weights
    height, width, _, filters = kernel.shape
    plain = config["strides"] == [1, 1] and config["dilation_rate"] == [1, 1]
    if not plain or config.get("groups", 1) != 1 or config["padding"] not in ("same", "valid"):
        raise UnknownLayerError("a convolution with strides, dilation or groups")
    table = kernel.reshape(-1, filters)
    around = [(0, 0)] * 4
    if config["padding"] == "same":
        around = [(0, 0), ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2), (0, 0)]

    def convolve(values: Floats) -> Floats:
        windows = sliding_window_view(np.pad(values, around), (height, width), axis=(1, 2))
        patches = np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3))
        found = patches.reshape(len(values), -1, len(table)) @ table  # a product for each image
        return (found + bias[0] if bias else found).reshape(*patches.shape[:3], filters)

    return convolve


def _pooling(config: Mapping[str, Any], _: Weights) -> Step:
    size = config["pool_size"]
    if config["strides"] != size or config["padding"] != "valid":
        raise UnknownLayerError("a pooling that overlaps or pads")

    def pool(values: Floats) -> Floats:
        n, height, width, channels = values.shape
        high, wide = height // size[0], width // size[1]
        whole = values[:, : high * size[0], : wide * size[1]]
        parts = whole.reshape(n, high, size[0], wide, size[1], channels)
        return np.asarray(parts.max(axis=4).max(axis=2))

    return pool


def _dense(_: Mapping[str, Any], weights: Weights) -> Step:
    kernel, *bias = weights

    def weigh(values: Floats) -> Floats:
        found = (values[:, None] @ kernel)[:, 0]  # the same sums wherever among the images it is
        return found + bias[0] if bias else found

    return weigh


def _rescaling(config: Mapping[str, Any], _: Weights) -> Step:
    scale, offset = np.float32(config["scale"]), np.float32(config["offset"])
    return lambda values: values * scale + offset


def _flatten(_: Mapping[str, Any], __: Weights) -> Step:
    return lambda values: values.reshape(len(values), -1)


def _mean_pooling(_: Mapping[str, Any], __: Weights) -> Step:
    return lambda values: np.asarray(values.mean(axis=(1, 2)))


def _nothing(_: Mapping[str, Any], __: Weights) -> Step:
    return lambda values: values


LAYERS: dict[str, Callable[[Mapping[str, Any], Weights], Step]] = {
    "Conv2D": _convolution,
    "MaxPooling2D": _pooling,
    "Dense": _dense,
    "Rescaling": _rescaling,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _mean_pooling,
    "Activation": _nothing,
}
"""What can be run here, by the classes of Keras."""

ACTIVATIONS: dict[str, Step] = {
    "relu": lambda values: np.maximum(values, np.float32(0)),
    "sigmoid": lambda values: np.asarray(expit(values)),
}
