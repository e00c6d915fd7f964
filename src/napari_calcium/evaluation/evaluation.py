"""Component evaluation: the scores of every component and the decision made from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from napari_calcium.components import Components, Quality
from napari_calcium.errors import InputError
from napari_calcium.evaluation.snr import trace_snr
from napari_calcium.evaluation.spatial_correlation import spatial_correlation
from napari_calcium.movie import Movie
from napari_calcium.parameters import Parameters, parameter

__all__ = ["ComponentEvaluationParameters", "decide", "evaluate_components"]


@dataclass(frozen=True)
class ComponentEvaluationParameters(Parameters):
    """Parameters of `evaluate_components`.

    A component is accepted if any score reaches its upper threshold and none is at or below its
    lower one.

    Parameters
    ----------
    decay_time : float
        Time in which a transient falls to 1/e, s. CaImAn: decay_time.
    snr_upper : float
        Trace SNR that is enough by itself, sd. CaImAn: min_SNR.
    snr_lower : float
        Trace SNR at or below which a component is rejected, sd. CaImAn: SNR_lowest.
    correlation_upper : float
        Spatial correlation that is enough by itself, 1. CaImAn: rval_thr.
    correlation_lower : float
        Spatial correlation at or below which a component is rejected, 1. CaImAn: rval_lowest.
    """

    decay_time: float = parameter(0.6, unit="s", above=0, maximum=60)
    snr_upper: float = parameter(2.5, unit="sd")
    snr_lower: float = parameter(0.5, unit="sd")
    correlation_upper: float = parameter(0.85, unit="1", minimum=-1, maximum=1)
    correlation_lower: float = parameter(0.8, unit="1", minimum=-1, maximum=1)

    def check(self) -> None:
        """Check that no lower threshold is above its upper one."""
        for score in ("snr", "correlation"):
            lower, upper = getattr(self, f"{score}_lower"), getattr(self, f"{score}_upper")
            if lower > upper:
                raise InputError(
                    f"{score}_lower is {lower:g}, above {score}_upper ({upper:g}); lower it"
                )


def evaluate_components(
    movie: Movie, components: Delayed, parameters: ComponentEvaluationParameters
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

    Returns
    -------
    Delayed of Quality
        ``cnn_probability`` is NaN: no classifier was asked.
    """
    snr = delayed(_snr, pure=True)(components, movie.frame_rate, parameters.decay_time)
    correlation = spatial_correlation(movie, components, parameters.decay_time)
    return delayed(_quality, pure=True)(snr, correlation, parameters)


def decide(
    snr: NDArray[np.float32],
    correlation: NDArray[np.float32],
    parameters: ComponentEvaluationParameters,
) -> NDArray[np.bool_]:
    """Return which components are accepted.

    Examples
    --------
    >>> parameters = ComponentEvaluationParameters(correlation_lower=0.2)
    >>> decide(np.array([3.0, 1.0, 3.0, 1.0]), np.array([0.5, 0.9, 0.1, 0.5]), parameters)
    array([ True,  True, False, False])
    """
    enough = (snr >= parameters.snr_upper) | (correlation >= parameters.correlation_upper)
    fails = (snr <= parameters.snr_lower) | (correlation <= parameters.correlation_lower)
    return np.asarray(enough & ~fails)


def _snr(components: Components, frame_rate: float, decay_time: float) -> NDArray[np.float32]:
    return trace_snr(components.traces + components.residuals, frame_rate, decay_time)


def _quality(
    snr: NDArray[np.float32],
    correlation: NDArray[np.float32],
    parameters: ComponentEvaluationParameters,
) -> Quality:
    unknown = np.full(len(snr), np.nan, np.float32)
    return Quality(snr, correlation, unknown, decide(snr, correlation, parameters))
