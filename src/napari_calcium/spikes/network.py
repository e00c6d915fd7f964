"""The networks: the published one, and one that is told of noise, frame rate and kinetics.

Both are fully convolutional: one pass gives the rate of every frame of a trace of any length.
Keras is imported only inside the functions that build one.
"""

from __future__ import annotations

from typing import Any, Literal

from napari_calcium.keras_models import import_keras
from napari_calcium.spikes.features import N_FEATURES

__all__ = [
    "AFTER",
    "BEFORE",
    "CHANNELS",
    "DILATIONS",
    "TAPS",
    "WINDOW",
    "Design",
    "build_conditioned",
    "build_published",
    "build_windowed",
]

Design = Literal["conditioned", "published"]

WINDOW = 64
"""Frames that the published network sees for one frame of the result."""

BEFORE, AFTER = 32, 31
"""How many of them are before that frame, and after it."""

CHANNELS = 32
FIRST_TAPS = 9
MIXED = 4
"""Sets of filters of which the first convolution is mixed, for each trace by its statistics."""

TAPS = 5
DILATIONS = (1, 2, 4, 8, 16, 32)
HIDDEN = 32

QUIET = -2.0
"""Where the rate starts before training, before it is made positive: near no spikes."""


def build_conditioned(
    channels: int = CHANNELS, dilations: tuple[int, ...] = DILATIONS, taps: int = TAPS
) -> Any:
    """Return a new network for any frame rate and noise, as a Keras model.

    Convolutions over the trace, each reaching twice as far as the one before and added to it. The
    statistics of the whole trace say of which filters the first is mixed, and how what the others
    see is scaled and shifted.

    Parameters
    ----------
    channels : int
        Filters of each convolution.
    dilations : tuple of int
        Of the convolutions, in frames.
    taps : int
        Of each.

    Returns
    -------
    keras.Model
        Takes ``trace`` (n, time, 2), see `features.channels`, and ``features`` (n, feature); gives
        spikes per frame (n, time, 1), not smoothed, 0 or more. The trace is taken to be at its
        baseline before its first frame and after its last one.
    """
    keras = import_keras(fast=True)
    layers = keras.layers
    trace = layers.Input((None, 2), name="trace")
    features = layers.Input((N_FEATURES,), name="features")
    told = layers.Normalization(name="normalise")(features)
    told = layers.Dense(HIDDEN, activation="relu", name="told_0")(told)
    told = layers.Dense(HIDDEN, activation="relu", name="told_1")(told)

    def adapted(values: Any, name: str) -> Any:
        scale = layers.Dense(channels, kernel_initializer="zeros", name=f"scale_{name}")(told)
        shift = layers.Dense(channels, kernel_initializer="zeros", name=f"shift_{name}")(told)
        scale, shift = (
            layers.Reshape((1, channels), name=f"{kind}_{name}_everywhere")(one)
            for kind, one in (("scale", scale), ("shift", shift))
        )
        scaled = layers.Multiply(name=f"scaled_{name}")([values, scale])
        moved = layers.Add(name=f"moved_{name}")([values, scaled, shift])
        return layers.ReLU(name=f"adapted_{name}")(moved)

    parts = []
    for k in range(MIXED):
        part = layers.Conv1D(channels, FIRST_TAPS, padding="same", name=f"first_{k}")(trace)
        share = layers.Dense(
            channels,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.05),
            bias_initializer=keras.initializers.Constant(0.5),
            name=f"share_{k}",
        )(told)
        share = layers.Reshape((1, channels), name=f"share_{k}_everywhere")(share)
        parts.append(layers.Multiply(name=f"shared_{k}")([part, share]))
    values = layers.Add(name="mixed")(parts)
    for i, dilation in enumerate(dilations):
        seen = layers.Conv1D(
            channels,
            taps,
            dilation_rate=dilation,
            padding="same",
            activation="relu",
            name=f"conv_{i}",
        )(adapted(values, str(i)))
        mixed = layers.Dense(channels, name=f"mix_{i}")(seen)
        values = layers.Add(name=f"sum_{i}")([values, mixed])
    seen = layers.Dense(channels // 2, activation="relu", name="last")(adapted(values, "last"))
    quiet = keras.initializers.Constant(QUIET)
    rate = layers.Dense(1, activation="softplus", bias_initializer=quiet, name="rate")(seen)
    gain = layers.Dense(1, activation="exponential", kernel_initializer="zeros", name="gain")(told)
    gain = layers.Reshape((1, 1), name="gain_everywhere")(gain)
    spikes = layers.Multiply(name="spikes")([rate, gain])
    return keras.Model([trace, features], spikes, name="conditioned")


def build_published() -> Any:
    """Return a new network of the published design, fully convolutional, as a Keras model.

    Each pooling of the windowed form becomes a maximum of neighbours, and what follows it is spread
    by two; the last, dense layer becomes a convolution over the two places that are left.

    Returns
    -------
    keras.Model
        Takes dF/F (n, time, 1); gives smoothed spikes per frame (n, time - 63, 1), the first of
        which is that of frame `BEFORE`. 34,381 weights.

    References
    ----------
    .. [1] Rupprecht et al., Nature Neuroscience 2021, doi:10.1038/s41593-021-00895-5
    """
    keras = import_keras(fast=True)
    layers = keras.layers
    trace = layers.Input((None, 1), name="trace")
    values = layers.Conv1D(30, 31, activation="relu", name="conv_0")(trace)
    values = layers.Conv1D(40, 19, activation="relu", name="conv_1")(values)
    values = layers.MaxPooling1D(2, strides=1, name="pool_0")(values)
    values = layers.Conv1D(50, 5, dilation_rate=2, activation="relu", name="conv_2")(values)
    earlier, later = (
        layers.Cropping1D(cut, name=name)(values)
        for name, cut in (("earlier", (0, 2)), ("later", (2, 0)))
    )
    values = layers.Maximum(name="pool_1")([earlier, later])
    values = layers.Dense(10, activation="relu", name="dense")(values)
    rate = layers.Conv1D(1, 2, dilation_rate=4, name="rate")(values)
    return keras.Model(trace, rate, name="published")


def build_windowed() -> Any:
    """Return a new network as it was published, for windows of 64 frames, as a Keras model.

    Returns
    -------
    keras.Model
        Takes windows of dF/F (n, 64, 1); gives the smoothed spikes (n, 1) of frame `BEFORE` of
        each. Its weights are those of `build_published`, the last ones in another shape.

    References
    ----------
    .. [1] Rupprecht et al., Nature Neuroscience 2021, doi:10.1038/s41593-021-00895-5
    """
    keras = import_keras(fast=True)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((WINDOW, 1)),
            layers.Conv1D(30, 31, activation="relu"),
            layers.Conv1D(40, 19, activation="relu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(50, 5, activation="relu"),
            layers.MaxPooling1D(2),
            layers.Dense(10, activation="relu"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
