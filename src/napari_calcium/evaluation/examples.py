"""Examples of footprints for training the classifier: crops, and which are cells."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.evaluation.crops import SIDE, footprint_crops

__all__ = ["MASK_RADIUS", "Examples", "in_groups", "joined", "mask_examples"]

MASK_RADIUS = 7.4
"""Radius of a soma in the masks, px: the median over the annotators', as discs of their area."""

MASKS_AT_ONCE = 1000
"""Masks whose weighted variants are held in memory together."""


@dataclass(frozen=True)
class Examples:
    """Footprints of which is known whether they are cells.

    Parameters
    ----------
    crops : ndarray of float32 (n, SIDE, SIDE)
        As `footprint_crops` makes them.
    cell : ndarray of bool (n,)
        Whether it is a cell.
    group : ndarray of str (n,)
        What the example is from, such as "seed 17" or "recording 501484643": examples of one group
        are never split between training and testing.
    kind : ndarray of str (n,)
        What the footprint shows, such as "soma", "dendrite" or "noise"; of masks, who drew them.

    Raises
    ------
    ValueError
        If the parts do not have the same number of examples, or the crops another size.

    Examples
    --------
    >>> crops = np.zeros((2, SIDE, SIDE), np.float32)
    >>> examples = Examples(crops, [True, False], ["seed 1", "seed 2"], ["soma", "noise"])
    >>> len(examples), examples.cell.dtype
    (2, dtype('bool'))
    """

    crops: NDArray[np.float32]
    cell: NDArray[np.bool_]
    group: NDArray[np.str_]
    kind: NDArray[np.str_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "crops", np.ascontiguousarray(self.crops, np.float32))
        object.__setattr__(self, "cell", np.ascontiguousarray(self.cell, np.bool_))
        for name in ("group", "kind"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.str_))
        if self.crops.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"crops are {self.crops.shape}; they are (n, {SIDE}, {SIDE})")
        for name in ("cell", "group", "kind"):
            if getattr(self, name).shape != (len(self),):
                raise ValueError(f"{len(self)} crops but {name} of {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Examples:
        """Return some of the examples, chosen as in an array."""
        return Examples(
            self.crops[chosen], self.cell[chosen], self.group[chosen], self.kind[chosen]
        )


def joined(*examples: Examples) -> Examples:
    """Return all the examples as one, in the order given.

    Examples
    --------
    >>> one = Examples(np.zeros((1, SIDE, SIDE)), [True], ["seed 1"], ["soma"])
    >>> joined(one, one).group.tolist()
    ['seed 1', 'seed 1']
    """
    names = ("crops", "cell", "group", "kind")
    return Examples(*(np.concatenate([getattr(part, name) for part in examples]) for name in names))


def in_groups(examples: Examples, groups: Collection[str]) -> Examples:
    """Return the examples that are from some groups.

    Examples
    --------
    >>> two = Examples(np.zeros((2, SIDE, SIDE)), [True, False], ["a", "b"], ["soma", "noise"])
    >>> in_groups(two, {"b"}).kind.tolist()
    ['noise']
    """
    return examples[np.isin(examples.group, sorted(groups))]


def mask_examples(
    path: str | Path,
    *,
    variants: int = 4,
    jitter: float = 0.15,
    radius: float = MASK_RADIUS,
    seed: int = 0,
) -> Examples:
    """Return examples made from masks of real recordings.

    A mask says only which pixels belong to a cell, a footprint weighs them. So of each mask some
    footprints are made that it may be the mask of: its edge blurred, a nucleus darker, a smooth
    texture and noise laid over, or little of that.

    Parameters
    ----------
    path : path
        An .npz file with ``mask`` (n, y, x) bool, ``neuron`` (n,) 1 where it is a cell,
        ``recording`` and ``source`` (n,): which recording, and who drew the mask.
    variants : int
        Footprints made of each mask, one after the other.
    jitter : float
        Standard deviation of the logarithm of a factor of their size; 0 keeps the masks' own.
    radius : float
        Radius of a soma in the masks, px.
    seed : int
        Of the random numbers; every mask and variant has a stream of its own.

    Returns
    -------
    examples : Examples
        ``group`` is "recording NAME", ``kind`` the source. An empty mask is left out.

    Raises
    ------
    InputError
        If the file is none of masks.
    """
    masks, cell, recording, source = _masks(path)
    parts = [
        _variant_crops(masks[start : start + MASKS_AT_ONCE], start, variants, jitter, radius, seed)
        for start in range(0, len(masks), MASKS_AT_ONCE)
    ]
    crops = np.concatenate([np.zeros((0, SIDE, SIDE), np.float32), *parts])
    group = np.char.add("recording ", recording)
    which = np.repeat(np.arange(len(masks)), variants)
    kept = np.flatnonzero(crops.any(axis=(1, 2)))
    return Examples(crops, cell[which], group[which], source[which])[kept]


def _masks(
    path: str | Path,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.str_], NDArray[np.str_]]:
    """Read masks, whether each is a cell, the recording it is from and who drew it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = ("mask", "neuron", "recording", "source")
            mask, neuron, recording, source = (file[name] for name in names)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give an .npz file of masks") from None
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} holds no masks ({error}); give an .npz file with the arrays mask (n, y, x), "
            "neuron, recording and source (n,)"
        ) from None
    if mask.ndim != 3 or any(len(part) != len(mask) for part in (neuron, recording, source)):
        raise InputError(
            f"{path} holds {mask.shape} masks and {neuron.shape} labels; "
            "give mask (n, y, x), neuron, recording and source (n,)"
        )
    return mask > 0, neuron > 0, recording.astype(np.str_), source.astype(np.str_)


def _variant_crops(
    masks: NDArray[np.bool_], first: int, variants: int, jitter: float, radius: float, seed: int
) -> NDArray[np.float32]:
    """Return the crops of the variants of some masks, the first of which has a number."""
    crops = np.zeros((len(masks), variants, SIDE, SIDE), np.float32)
    for variant in range(variants):
        streams = [default_rng([seed, first + i, variant]) for i in range(len(masks))]
        images = np.stack(
            [_weighted(mask, stream) for mask, stream in zip(masks, streams, strict=True)]
        )
        columns = sp.csc_array(images.reshape(len(masks), -1).T)
        for i, stream in enumerate(streams):
            scale = math.exp(jitter * stream.normal())
            column = columns[:, [i]]
            crops[i, variant] = footprint_crops(column, masks.shape[1:], radius / scale)[0]
    return crops.reshape(-1, SIDE, SIDE)


def _weighted(mask: NDArray[np.bool_], stream: Generator) -> NDArray[np.float32]:
    """Return a footprint that a mask may be of, not negative, its maximum 1."""
    if not mask.any():
        return mask.astype(np.float32)
    image = mask.astype(np.float64)
    if stream.random() < 0.8:
        image *= _profile(mask, stream)
        image *= np.exp(stream.uniform(0, 0.3) * _texture(mask.shape, stream.uniform(1, 3), stream))
    image = ndimage.gaussian_filter(image, stream.uniform(0.3, 1.0))
    image += stream.uniform(0, 0.1) * image.max() * stream.normal(size=mask.shape) * (image > 0.1)
    image[image < stream.uniform(0.05, 0.2) * image.max()] = 0
    return np.asarray(image / image.max(), np.float32)


def _profile(mask: NDArray[np.bool_], stream: Generator) -> NDArray[np.float64]:
    """Return how bright a mask is from its edge to its middle: flat, domed, or with a nucleus.

    The edge keeps at least 0.3, so that a footprint reaches as far as its mask.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    depth /= depth.max()
    edge, power = stream.uniform(0.3, 1), stream.uniform(0.5, 1.5)
    dome = edge + (1 - edge) * depth**power
    if stream.random() < 0.5:
        return np.asarray(dome)
    width, hollow = stream.uniform(0.4, 0.7), stream.uniform(0.2, 0.7)
    return np.asarray(1 - hollow * np.exp(-(((1 - depth) / width) ** 2)))


def _texture(shape: tuple[int, ...], width: float, stream: Generator) -> NDArray[np.float64]:
    """Return smooth noise of unit standard deviation."""
    noise = ndimage.gaussian_filter(stream.normal(size=shape), width, mode="wrap")
    return np.asarray(noise / noise.std())
