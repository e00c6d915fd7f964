"""Parameters of source extraction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from napari_calcium.deconvolution.constrained import Penalty
from napari_calcium.deconvolution.foopsi import DeconvolutionParameters
from napari_calcium.errors import InputError
from napari_calcium.movie import check_one_plane
from napari_calcium.parameters import Parameters, parameter

__all__ = ["SourceExtractionParameters"]

MOST_BINS = 4000
"""Cells are searched in at most so many averaged frames: memory is bounded for any length."""

MOST_VALUES = 2**26
"""A patch has at most so many values in its averaged frames; the search holds three times that."""

RADIUS_SEARCHED = 8.0
"""Larger cells are searched in frames whose pixels are averaged, until they are no larger, px."""


@dataclass(frozen=True)
class SourceExtractionParameters(Parameters):
    """Parameters of `extract_sources`.

    Parameters
    ----------
    cell_radius : float
        Radius of a typical cell, px. CaImAn: gSig; Suite2p: diameter / 2.
    decay_time : float
        Time in which a transient falls to 1/e, roughly, s; sets the averaging in time while cells
        are searched. Traces are deconvolved with it only where `time_constants` is "given". CaImAn:
        decay_time; Suite2p: tau.
    initialization : {"greedy", "sparse_nmf", "graph_nmf", "pca_ica", "seeds"}
        How cells are first found: one after the other, for somata; by sparse or by smooth
        factorization, for dendrites and axons (turn `connected` off); by independent components;
        or where `seeds_file` says and nowhere else. CaImAn: method_init.
    seeds_file : str
        Where the cells are, for "seeds": a labels image (.tif, .npy), ImageJ ROIs (.zip, .roi), a
        session (.zarr), or the image of a structural channel. CaImAn: masks_in.
    seeds_kind : {"regions", "structure"}
        What `seeds_file` holds: the cells themselves, or an image of a structural channel in which
        they are looked for. CaImAn: extract_binary_masks_from_structural_channel.
    n_cells : int
        Cells to find in each patch, centred in it, before they are merged and sorted out; 0 stops
        where what remains is noise. CaImAn: K.
    threshold : float
        Smallest root of the summed squared activity of a cell, in sd of its noise; what has less
        is taken for noise, so the number of cells need not be given. CaImAn: K, min_pnr; Suite2p:
        threshold_scaling.
    patch_size : int
        Side of the patches in which cells are searched, px, without their overlap; at least eight
        times `cell_radius` is taken; 0 takes the whole field at once, of a long movie with frames
        averaged over longer times so that memory is bounded. CaImAn: 2 * rf less the overlap.
    patch_overlap : int
        What each patch sees of its neighbours on every side, px; 0 takes four times `cell_radius`.
        CaImAn: half of stride.
    decimate_time : float
        Frames are averaged over this time while cells are searched, s; 0 takes half `decay_time`.
        CaImAn: tsub; Suite2p: nbinned.
    decimate_space : int
        Pixels averaged along each axis while cells are searched; 0 averages only where cells are
        large. CaImAn: ssub; Suite2p: spatial_scale.
    background : {"grid", "low_rank", "patches", "none"}
        How what is no cell varies in time: smoothly from node to node of a grid; as `n_background`
        components of the field, or of each patch; or not at all. CaImAn: low_rank_background.
    n_background : int
        Components of the background, for "low_rank" and "patches". CaImAn: gnb, nb.
    neuropil_spacing : float
        Distance over which neuropil may change, for "grid", px. CaImAn: nb per patch; Suite2p:
        ratio_neuropil.
    sparsity : float
        Weight of a pixel in a footprint that counts as noise, in sd. CaImAn: method_ls, the
        noise-constrained LASSO.
    support : {"dilation", "ellipse"}
        Where a footprint may grow at each refinement: around its pixels, or within an ellipse of
        its size and direction. CaImAn: method_exp.
    support_radius : float
        How far it may grow, px; 0 takes half of `cell_radius`. CaImAn: dist, expandCore.
    footprint_edge : {"maximum", "energy"}
        What of a footprint is kept: the weights above a part of its largest, or the largest ones
        that have a part of its energy. CaImAn: thr_method.
    edge_maximum : float
        That part of the largest weight. CaImAn: maxthr.
    edge_energy : float
        That part of the energy. CaImAn: nrgthr.
    connected : bool
        Whether a footprint is one piece; off for dendrites and axons.
    ar_order : {0, 1, 2}
        Order of the calcium's autoregression: none (traces are not denoised), decay, rise and
        decay. CaImAn: p.
    time_constants : {"fitted", "autocovariance", "given"}
        Whether the time constants are those that predict the traces best, those of each trace's
        autocovariance, or `decay_time` and `rise_time`.
    rise_time : float
        Time constant of the rise, s, where it is given and `ar_order` is 2; one that is too slow is
        worse than none.
    penalty : {"none", "l1", "l0"}
        What activity costs: nothing; its sum, until the denoised trace differs from the raw one by
        noise, which leaves fewer small events and smaller transients; or that no transient be
        smaller than `min_spike`. CaImAn: method_deconvolution, s_min.
    min_spike : float
        Height of the smallest transient, for "l0", in sd of the trace's noise. CaImAn: s_min.
    merge : bool
        Whether overlapping components whose traces correlate become one. CaImAn: do_merge.
    merge_correlation : float
        What correlates more is one cell, 1. CaImAn: merge_thr.
    duplicate_overlap : float
        What lies with more than this part of its area inside one stronger cell is dropped, 1; from
        1 on nothing is. Suite2p: max_overlap.
    min_size : float
        Area of the smallest cell, in discs of `cell_radius`; what is smaller is dropped. CaImAn:
        min_size_neuro.
    max_size : float
        Area of the largest cell, in discs of `cell_radius`; what is larger is no cell in focus and
        becomes part of the background. CaImAn: max_size_neuro.
    max_spread : float
        Spread of the most ragged cell, 1 for a disc; what is more spread out (neuropil, vessels,
        also dendrites: raise it for those) becomes part of the background. Suite2p: the ``mrs``
        of its compactness.
    refinements : int
        Passes over the whole field after the search, each an update of traces and footprints; 0
        leaves the footprints as they were first found. CaImAn: refit, only_init.
    """

    cell_radius: float = parameter(5.0, unit="px", minimum=1.5, maximum=100)
    decay_time: float = parameter(0.6, unit="s", above=0, maximum=60)
    initialization: Literal["greedy", "sparse_nmf", "graph_nmf", "pca_ica", "seeds"] = "greedy"
    seeds_file: str = ""
    seeds_kind: Literal["regions", "structure"] = "regions"
    n_cells: int = parameter(0, minimum=0)
    threshold: float = parameter(12.0, unit="sd", above=0)
    patch_size: int = parameter(64, unit="px", minimum=0, maximum=4096)
    patch_overlap: int = parameter(0, unit="px", minimum=0, maximum=1024)
    decimate_time: float = parameter(0.0, unit="s", minimum=0, maximum=60)
    decimate_space: int = parameter(0, minimum=0, maximum=16)
    background: Literal["grid", "low_rank", "patches", "none"] = "grid"
    n_background: int = parameter(1, minimum=1, maximum=20)
    neuropil_spacing: float = parameter(40.0, unit="px", minimum=8)
    sparsity: float = parameter(1.5, unit="sd", minimum=0)
    support: Literal["dilation", "ellipse"] = "dilation"
    support_radius: float = parameter(0.0, unit="px", minimum=0, maximum=100)
    footprint_edge: Literal["maximum", "energy"] = "maximum"
    edge_maximum: float = parameter(0.1, unit="1", minimum=0, maximum=1)
    edge_energy: float = parameter(0.9999, unit="1", above=0, maximum=1)
    connected: bool = True
    ar_order: Literal[0, 1, 2] = 1
    time_constants: Literal["fitted", "autocovariance", "given"] = "fitted"
    rise_time: float = parameter(0.05, unit="s", minimum=0, maximum=60)
    penalty: Penalty = "none"
    min_spike: float = parameter(3.0, unit="noise sd", minimum=0)
    merge: bool = True
    merge_correlation: float = parameter(0.8, unit="1", minimum=0)
    duplicate_overlap: float = parameter(0.7, unit="1", minimum=0)
    min_size: float = parameter(0.5, unit="discs", minimum=0)
    max_size: float = parameter(2.5, unit="discs", above=0)
    max_spread: float = parameter(1.6, unit="1", minimum=1)
    refinements: int = parameter(2, unit="passes", minimum=0, maximum=10)

    def check(self) -> None:
        """Raise `InputError` where the sizes, or seeds and initialization, contradict."""
        if self.max_size <= self.min_size:
            raise InputError(
                f"max_size is {self.max_size:g} discs; it must be above min_size, "
                f"{self.min_size:g} discs"
            )
        self.deconvolution.check()
        if self.initialization == "seeds" and not self.seeds_file:
            raise InputError(
                "initialization is 'seeds' but seeds_file is not given; name a labels image, "
                "ImageJ ROIs, a session, or the image of a structural channel"
            )
        if self.seeds_file and self.initialization != "seeds":
            raise InputError(
                f"seeds_file is {self.seeds_file!r} but initialization is "
                f"{self.initialization!r}; set initialization to 'seeds' or leave the file out"
            )

    def check_movie(self, shape: tuple[int, ...]) -> None:
        """Raise `InputError` for volumes, or if a cell does not fit into the field."""
        check_one_plane(shape, "source_extraction")
        if min(shape[1:]) < 2 * self.cell_radius:
            raise InputError(
                f"cell_radius is {self.cell_radius:g} px but the field is only {shape[1]} x "
                f"{shape[2]} px; give a smaller cell_radius"
            )

    def files(self) -> tuple[str, ...]:
        """Return the file of seeds, if there is one."""
        return (self.seeds_file,) if self.seeds_file else ()

    @property
    def deconvolution(self) -> DeconvolutionParameters:
        """How traces are deconvolved."""
        names = ("ar_order", "time_constants", "decay_time", "rise_time", "penalty", "min_spike")
        return DeconvolutionParameters(**{name: getattr(self, name) for name in names})

    @property
    def disc(self) -> float:
        """Area of a typical cell, px."""
        return math.pi * self.cell_radius**2

    @property
    def halo(self) -> int:
        """What a patch sees beyond its core, px."""
        return self.patch_overlap or math.ceil(4 * self.cell_radius)

    @property
    def reach(self) -> int:
        """How far a footprint may grow in one refinement, px."""
        return max(1, round(self.support_radius)) if self.support_radius else self._half_a_cell

    @property
    def _half_a_cell(self) -> int:
        return max(2, round(0.5 * self.cell_radius))

    @property
    def pixels_averaged(self) -> int:
        """Pixels averaged along each axis while cells are searched."""
        return self.decimate_space or max(1, math.ceil(self.cell_radius / RADIUS_SEARCHED))

    def core(self, field: tuple[int, int]) -> int:
        """Return the largest side of a patch without its halo, px."""
        least = math.ceil(8 * self.cell_radius)
        return max(self.patch_size, least) if self.patch_size else max(field)

    def frames_averaged(self, n_frames: int, frame_rate: float, pixels: int) -> int:
        """Return how many frames are averaged for the search in a patch of so many pixels."""
        asked = round((self.decimate_time or 0.5 * self.decay_time) * frame_rate)
        values = pixels / self.pixels_averaged**2
        bins = max(1, min(MOST_BINS, int(MOST_VALUES / values)))
        return max(1, asked, -(-n_frames // bins))
