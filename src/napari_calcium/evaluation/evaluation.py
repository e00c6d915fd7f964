"""Component evaluation: the scores of every component and the decision made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Components, Quality
from napari_calcium.errors import InputError
from napari_calcium.evaluation.classifier import (
    SHIPPED,
    check_classifier,
    cnn_probability,
    model_digest,
)
from napari_calcium.evaluation.decision import THRESHOLDS, decide
from napari_calcium.evaluation.snr import trace_snr
from napari_calcium.evaluation.spatial_correlation import correlations, triggered_images
from napari_calcium.footprints import areas, masks
from napari_calcium.movie import Movie, blocks
from napari_calcium.parameters import Parameters, parameter

__all__ = ["ComponentEvaluationParameters", "evaluate_components", "overlaps", "why_not_asked"]

SMALLEST_OVERLAP = 0.2
"""Pairs of cells that overlap less are not kept; no threshold is below."""

CELLS_AT_A_TIME = 64

FOR_DENDRITES = ("sparse_nmf", "graph_nmf")
"""Initializations of source extraction that are for dendrites and axons."""


@dataclass(frozen=True)
class ComponentEvaluationParameters(Parameters):
    """Parameters of `evaluate_components`.

    A component is accepted if any score reaches its upper threshold and none is at or below its
    lower one, it is neither too small nor too large, and no duplicate of a better one.

    Parameters
    ----------
    decay_time : float
        Time in which a transient falls to 1/e, s. CaImAn: decay_time.
    classifier : {"automatic", "on", "off"}
        Whether a neural network is asked how much each footprint looks like a soma; automatic does
        so but for one-photon recordings and where source extraction was set for dendrites, of
        which it knows nothing. CaImAn: use_cnn.
    classifier_file : str
        A model that `napari-calcium train-classifier` wrote (.keras), instead of the one that comes
        with the program.
    snr_upper : float
        Trace SNR that is enough by itself, in units of 3 sd of the noise. CaImAn: min_SNR.
    snr_lower : float
        Trace SNR at or below which a component is rejected, as above. CaImAn: SNR_lowest.
    correlation_upper : float
        Spatial correlation that is enough by itself, 1. CaImAn: rval_thr.
    correlation_lower : float
        Spatial correlation at or below which a component is rejected, 1. CaImAn: rval_lowest.
    cnn_upper : float
        Probability by the classifier that is enough by itself, 1. CaImAn: min_cnn_thr.
    cnn_lower : float
        Probability at or below which a component is rejected, 1. CaImAn: cnn_lowest.
    min_size : float
        Area of the smallest cell, in discs of source extraction's `cell_radius`. CaImAn:
        min_size_neuro.
    max_size : float
        Area of the largest cell, in the same discs. CaImAn: max_size_neuro.
    duplicate_overlap : float
        Of two cells of which the smaller lies in the other with more than this part of its area
        only the better is accepted; from 1 on both may be. CaImAn: remove_duplicates; Suite2p:
        max_overlap.
    """

    decay_time: float = parameter(0.6, unit="s", above=0, maximum=60)
    classifier: Literal["automatic", "on", "off"] = "automatic"
    classifier_file: str = ""
    snr_upper: float = parameter(2.5, unit="3 sd", decides=True)
    snr_lower: float = parameter(0.5, unit="3 sd", decides=True)
    correlation_upper: float = parameter(0.85, unit="1", minimum=-1, maximum=1, decides=True)
    correlation_lower: float = parameter(0.8, unit="1", minimum=-1, maximum=1, decides=True)
    cnn_upper: float = parameter(0.9, unit="1", minimum=0, maximum=1, decides=True)
    cnn_lower: float = parameter(0.1, unit="1", minimum=0, maximum=1, decides=True)
    min_size: float = parameter(0.3, unit="discs", minimum=0, decides=True)
    max_size: float = parameter(4.0, unit="discs", above=0, decides=True)
    duplicate_overlap: float = parameter(0.7, unit="1", minimum=SMALLEST_OVERLAP, decides=True)

    def check(self) -> None:
        """Check that no lower threshold is above its upper one."""
        for lower, upper in THRESHOLDS.values():
            if getattr(self, lower) > getattr(self, upper):
                raise InputError(
                    f"{lower} is {getattr(self, lower):g}, above {upper} "
                    f"({getattr(self, upper):g}); lower it"
                )

    def check_means(self) -> None:
        """Check that the classifier can be asked, where it may be."""
        if self.classifier != "off":
            check_classifier(self.classifier_file)

    def shipped(self) -> Mapping[str, str]:
        """Return the digest of the model that comes with the program, where it may be asked."""
        if self.classifier == "off" or self.classifier_file:
            return {}
        return {"classifier": model_digest(SHIPPED)}

    def files(self) -> tuple[str, ...]:
        """Return the file of the classifier, if one is given and asked."""
        return (self.classifier_file,) if self.classifier_file and self.classifier != "off" else ()


def evaluate_components(
    movie: Movie,
    components: Delayed,
    parameters: ComponentEvaluationParameters,
    cell_radius: float,
    *,
    ask: bool = True,
) -> Delayed:
    """Score components and decide which are cells.

    Parameters
    ----------
    movie : Movie
        The registered movie they were found in; one pass is made over it.
    components : Delayed of Components
        What source extraction found; none is fine.
    parameters : ComponentEvaluationParameters
        Thresholds.
    cell_radius : float
        Radius of a typical cell, px: the scale of sizes, and on which the classifier looks.
    ask : bool
        Whether the classifier is asked: see `why_not_asked`.

    Returns
    -------
    Delayed of Quality
        ``cnn_probability`` is NaN where the classifier was not asked.

    References
    ----------
    .. [1] Giovannucci et al., eLife 2019, doi:10.7554/eLife.38173
    """
    snr = delayed(_snr, pure=True)(components, movie.frame_rate, parameters.decay_time)
    images = triggered_images(movie, components, parameters.decay_time)
    file = parameters.classifier_file
    probability = delayed(_probability, pure=True)(components, cell_radius, file) if ask else None
    return delayed(_quality, pure=True)(
        components, snr, images, probability, cell_radius, parameters
    )


def why_not_asked(
    parameters: ComponentEvaluationParameters, modality: str, extraction: Mapping[str, Any]
) -> str:
    """Say why the classifier is not asked; "" where it is.

    Parameters
    ----------
    parameters : ComponentEvaluationParameters
        What a person said.
    modality : str
        How the recording is marked: "two-photon" or "one-photon".
    extraction : mapping
        The parameters with which the components were extracted.

    Examples
    --------
    >>> why_not_asked(ComponentEvaluationParameters(), "two-photon", {})
    ''
    >>> why_not_asked(ComponentEvaluationParameters(), "one-photon", {})
    'The classifier was not asked: it knows somata of two-photon recordings, and this one is \
marked one-photon; set classifier to on to ask it all the same.'
    """
    if parameters.classifier == "on":
        return ""
    if parameters.classifier == "off":
        return "The classifier was not asked: classifier is off."
    initialization = extraction.get("initialization")
    if modality != "two-photon":
        which = f"this one is marked {modality}"
    elif initialization in FOR_DENDRITES:
        which = f"dendrites were looked for (initialization {initialization})"
    elif not extraction.get("connected", True):
        which = "dendrites were looked for (connected is off)"
    else:
        return ""
    return (
        f"The classifier was not asked: it knows somata of two-photon recordings, and {which}; "
        "set classifier to on to ask it all the same."
    )


def overlaps(footprints: sp.csc_array) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return which footprints overlap, and by how much.

    Parameters
    ----------
    footprints : scipy.sparse.csc_array (pixel, cell)
        Weights; the pixels above a fifth of a footprint's maximum count.

    Returns
    -------
    pairs : ndarray (pair, 2)
        Their indices, the first below the second, in ascending order.
    overlap : ndarray (pair,)
        Part of the smaller one's pixels that are the other's too, above `SMALLEST_OVERLAP`.

    Examples
    --------
    >>> pairs, part = overlaps(sp.csc_array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1.0]]))
    >>> pairs.tolist(), part.tolist()
    ([[0, 1], [0, 2]], [1.0, 0.5])
    """
    inside = masks(footprints)
    area = np.diff(inside.indptr)
    both = sp.coo_array(inside.T @ inside)
    first, second = both.coords
    part = both.data / np.maximum(np.minimum(area[first], area[second]), 1)
    kept = (first < second) & (part > SMALLEST_OVERLAP)
    order = np.lexsort((second[kept], first[kept]))
    pairs = np.stack([first[kept], second[kept]], axis=1)[order]
    return pairs.astype(np.int64), part[kept][order].astype(np.float32)


def _snr(components: Components, frame_rate: float, decay_time: float) -> NDArray[np.float32]:
    found = [np.zeros(0, np.float32)]
    for run in blocks(components.n_cells, CELLS_AT_A_TIME):  # raw traces of all would be large
        raw = components.traces[run] + components.residuals[run]
        found.append(trace_snr(raw, frame_rate, decay_time))
    return np.concatenate(found)


def _probability(components: Components, cell_radius: float, file: str) -> NDArray[np.float32]:
    return cnn_probability(components.footprints, components.shape, cell_radius, file)


def _quality(
    components: Components,
    snr: NDArray[np.float32],
    images: sp.csc_array,
    probability: NDArray[np.float32] | None,
    cell_radius: float,
    parameters: ComponentEvaluationParameters,
) -> Quality:
    n_cells = components.n_cells
    pairs, overlap = overlaps(components.footprints)
    scores = Quality(
        snr=snr,
        spatial_correlation=correlations(components, images),
        cnn_probability=np.full(n_cells, np.nan) if probability is None else probability,
        accepted=np.zeros(n_cells, bool),
        size=(areas(components.footprints) / (np.pi * cell_radius**2)).astype(np.float32),
        pairs=pairs,
        overlap=overlap,
        triggered=images,
    )
    return decide(scores, parameters)
