"""Source extraction: constrained non-negative matrix factorization, out of core.

The movie is modelled as footprints times traces, plus neuropil that varies smoothly over the
field, plus a static image (Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037). Cells are
found patch by patch on frames averaged in time (`extraction.search`); then the whole field is
refined together, each refinement one pass over the movie for the traces and one for the footprints
(`extraction.refinement`).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from dask.delayed import Delayed, delayed

from napari_calcium.errors import InputError
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.extraction.refinement import components_of, refined, with_traces
from napari_calcium.extraction.search import search
from napari_calcium.movie import Movie

__all__ = ["SourceExtractionParameters", "extract_sources", "fit_model"]


def extract_sources(
    movie: Movie, parameters: SourceExtractionParameters, seeds: sp.csc_array | None = None
) -> Delayed:
    """Find the cells of a registered movie.

    Parameters
    ----------
    movie : Movie
        Registered. A pixel that is NaN or infinite in some frame belongs to no cell and no
        background.
    parameters : SourceExtractionParameters
        See there.
    seeds : scipy.sparse.csc_array (pixel, cell), optional
        Where the cells are, any weights above 0, for the initialization "seeds". They are all kept,
        in their order, also those that are silent; none is merged with another.

    Returns
    -------
    Delayed of Components
        Cells in the order of their place, patch by patch; none is a valid result.

    Raises
    ------
    InputError
        If a cell does not fit into the field, or seeds are missing, not asked for, or of another
        field.

    References
    ----------
    Pnevmatikakis et al. 2016, 10.1016/j.neuron.2015.11.037; Giovannucci et al. 2019,
    10.7554/eLife.38173.

    Examples
    --------
    >>> import dask.array as da
    >>> movie = Movie(da.ones((50, 37, 53), dtype="uint16", chunks=20), frame_rate=10)
    >>> extract_sources(movie, SourceExtractionParameters()).compute().n_cells
    0
    """
    return delayed(components_of)(fit_model(movie, parameters, seeds))


def fit_model(
    movie: Movie, parameters: SourceExtractionParameters, seeds: sp.csc_array | None = None
) -> Delayed:
    """Build what `extract_sources` does, up to the model with its census of candidates.

    Returns
    -------
    Delayed of Model
        Its traces are measured.
    """
    parameters.check_movie(movie.frames.shape)
    seeds = None if seeds is None else sp.csc_array(seeds)
    _check_seeds(movie, parameters, seeds)
    model = search(movie, parameters, seeds)
    for _ in range(parameters.refinements):
        model = refined(movie, model, parameters)
    return with_traces(movie, model, parameters)


def _check_seeds(
    movie: Movie, parameters: SourceExtractionParameters, seeds: sp.csc_array | None
) -> None:
    if (parameters.initialization == "seeds") != (seeds is not None):
        raise InputError(
            f"initialization is {parameters.initialization!r} but seeds are "
            f"{'not ' if seeds is None else ''}given; give seeds with the initialization 'seeds'"
        )
    if seeds is None:
        return
    height, width = movie.plane
    if seeds.shape[0] != height * width:
        raise InputError(
            f"seeds have {seeds.shape[0]} pixels but the field is {height} x {width} px; "
            "give seeds of the same field"
        )
    if seeds.shape[1] == 0:
        raise InputError("seeds are given but there are none in them; draw at least one cell")
    empty = np.flatnonzero(np.asarray(abs(seeds).sum(axis=0)).ravel() == 0)
    if len(empty):
        raise InputError(f"seed {empty[0] + 1} has no pixel; leave it out or draw it again")
