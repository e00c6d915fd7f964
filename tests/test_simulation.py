from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import scipy.ndimage as ndi
import threadpoolctl
import tifffile

from napari_calcium import simulation
from napari_calcium.footprints import areas, masks, spreads
from napari_calcium.simulation import SimulationParameters, simulate
from napari_calcium.truth import CSC_PARTS, Truth, load_truth

SMALL = SimulationParameters(height=37, width=53, n_frames=150, n_cells=6, n_out_of_focus=3)
STILL = replace(SMALL, motion_rigid=0, motion_piecewise=0)
"""No motion."""
FROZEN = replace(SMALL, spike_amplitude=0, neuropil=0, bleaching=0, photons=400, motion_piecewise=0)
"""Nothing but motion changes, and there is hardly any noise."""

SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"


def _compute(parameters):
    return simulate(parameters).movie.frames.compute(scheduler="sync")


def _correlation(image, other):
    inner = (slice(5, -5), slice(5, -5))  # what the test itself has no data for at the borders
    return np.corrcoef(image[inner].ravel(), other[inner].ravel())[0, 1]


def _equal(first: Truth, second: Truth) -> bool:
    parts = [(getattr(first.footprints, n), getattr(second.footprints, n)) for n in CSC_PARTS]
    names = ("traces", "spikes", "template", "shifts", "shifts_piecewise", "grid_y", "grid_x")
    parts += [(getattr(first, n), getattr(second, n)) for n in names]
    same = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in parts)
    return same and first.shape == second.shape and first.frame_rate == second.frame_rate


class TestMovie:
    def test_same_parameters_make_the_same_recording(self):
        first, second = simulate(SMALL), simulate(SMALL)
        assert first.movie.frames.name == second.movie.frames.name
        assert np.array_equal(first.movie.frames.compute(), second.movie.frames.compute())
        assert _equal(first.truth, second.truth)

    def test_another_seed_makes_another_recording(self):
        other = replace(SMALL, seed=1)
        assert simulate(SMALL).movie.frames.name != simulate(other).movie.frames.name
        assert not np.array_equal(_compute(SMALL), _compute(other))

    def test_nothing_is_computed_while_building(self):
        def refuse(*args, **kwargs):
            raise AssertionError("computed")

        with dask.config.set(scheduler=refuse):
            movie = simulate(SMALL).movie
        assert movie.frames.shape == (150, 37, 53)
        assert movie.frames.chunks[0] == (64, 64, 22)

    def test_part_of_the_movie_equals_the_same_part_of_the_whole(self):
        movie = simulate(SMALL).movie
        whole = movie.frames.compute(scheduler="threads", num_workers=2)
        box = (slice(60, 131), slice(3, 21), slice(40, 53))
        assert np.array_equal(movie.frames[box].compute(scheduler="sync"), whole[box])
        assert np.array_equal(movie.read(*box).compute(), whole[box])

    def test_threads_of_blas_do_not_matter(self):
        made = []
        for threads in (1, 2):
            with threadpoolctl.threadpool_limits(threads):
                made.append(
                    _compute(replace(SMALL, height=170, width=180, n_cells=60, n_frames=400))
                )
        assert np.array_equal(*made)

    def test_blocks_have_independent_noise(self):
        frames = _compute(replace(FROZEN, motion_rigid=0, n_frames=128)).astype(float)
        noise = frames - frames.mean(0)
        # the spread of a correlation over 37 * 53 pixels is 0.02
        assert abs(np.corrcoef(noise[0].ravel(), noise[64].ravel())[0, 1]) < 0.1

    def test_truth_does_not_hold_the_scene_of_another_motion(self):
        first, second = simulate(SMALL).truth, simulate(STILL).truth
        assert np.array_equal(first.template, second.template)
        assert np.array_equal(first.footprints.data, second.footprints.data)

    def test_int16_is_negative_where_it_is_dark(self):
        unsigned, signed = _compute(SMALL), _compute(replace(SMALL, dtype="int16"))
        assert (unsigned.dtype, signed.dtype) == (np.uint16, np.int16)
        assert signed.min() < 0
        assert np.array_equal(signed + 400, unsigned)

    def test_counts_stop_at_the_limits_of_their_type(self):
        frames = _compute(replace(SMALL, gain=4000.0, n_frames=4))
        assert frames.max() == 65535

    def test_noise_is_shot_noise_and_read_noise(self):
        parameters = replace(FROZEN, motion_rigid=0, n_frames=400, photons=20, read_noise=30)
        frames = _compute(parameters).astype(float)
        expected = 10**2 * (simulate(parameters).truth.template - 200) / 10 + 30**2
        # the variance of 400 frames at 1961 pixels: its mean is known to 0.2 %
        assert frames.var(0).mean() == pytest.approx(expected.mean(), rel=0.01)

    def test_brightness_at_rest_and_bleaching(self):
        parameters = replace(STILL, spike_amplitude=0, neuropil=0, bleaching=0.4)
        frames = _compute(parameters).astype(float) - 200
        # 1961 pixels of 12 photons: the mean is known to 0.6 %
        assert frames[0].mean() == pytest.approx(120, rel=0.03)
        assert frames[-1].mean() == pytest.approx(0.6 * 120, rel=0.03)

    @pytest.mark.parametrize("change", [{"n_cells": 0}, {"n_out_of_focus": 0}, {"n_frames": 2}])
    def test_without_cells_or_time(self, change):
        made = simulate(replace(SMALL, **change))
        assert made.movie.frames.compute().shape[1:] == (37, 53)
        assert np.isfinite(made.truth.traces).all()

    def test_no_cells_at_all(self):
        made = simulate(replace(SMALL, n_cells=0, n_out_of_focus=0))
        assert made.truth.footprints.shape == (37 * 53, 0)
        assert made.movie.frames[0].compute().shape == (37, 53)


class TestMotion:
    @pytest.mark.parametrize("axis", [0, 1])
    def test_adding_the_shift_undoes_the_motion(self, axis):
        made = simulate(FROZEN)
        frame = int(np.abs(made.truth.shifts[:, axis]).argmax())
        shift = made.truth.shifts[frame]
        moved = made.movie.frames[frame].compute().astype(float)
        wrong = shift * np.where(np.arange(2) == axis, -1, 1)
        right = _correlation(ndi.shift(moved, shift), made.truth.template)
        assert right > 0.98  # what is left is noise and interpolation
        assert right > _correlation(moved, made.truth.template) + 0.1
        assert right > _correlation(ndi.shift(moved, wrong), made.truth.template) + 0.1

    @pytest.mark.parametrize("axis", [0, 1])
    def test_largest_shift_is_the_one_asked_for(self, axis):
        shifts = simulate(replace(SMALL, motion_rigid=2.5)).truth.shifts
        assert np.abs(shifts[:, axis]).max() == pytest.approx(2.5, abs=1e-4)
        assert shifts[:, axis].mean() == pytest.approx(0, abs=1e-4)

    def test_piecewise_shifts_undo_what_rigid_ones_cannot(self):
        made = simulate(replace(FROZEN, motion_rigid=1, motion_piecewise=3))
        truth = made.truth
        deviation = truth.shifts_piecewise - truth.shifts[:, None, None]
        assert np.abs(deviation).max() == pytest.approx(3, abs=1e-4)
        frame = int(np.abs(deviation).max((1, 2, 3)).argmax())
        moved = made.movie.frames[frame].compute().astype(float)
        shifts = np.stack([_bilinear(truth, frame, axis) for axis in (0, 1)])
        rigid = _correlation(ndi.shift(moved, truth.shifts[frame]), truth.template)
        unwarped = ndi.map_coordinates(moved, _inverse(shifts))
        assert _correlation(unwarped, truth.template) > 0.98
        assert _correlation(unwarped, truth.template) > rigid + 0.03

    def test_shift_brings_in_the_tissue_beyond_the_border(self):
        random = np.random.default_rng(0)
        scene = random.normal(size=(37 + 32, 53 + 32)).astype(np.float32)
        shifts = np.broadcast_to(np.float32([[[-4]], [[6]]]), (2, 37, 53))
        frame = simulation._sample(ndi.spline_filter(scene, output=np.float32), shifts, 16)
        # a spline passes through its samples; float32 rounding
        np.testing.assert_allclose(frame, scene[12 : 12 + 37, 22 : 22 + 53], atol=2e-5)

    def test_movie_has_no_pixels_of_the_opposite_edge(self):
        made = simulate(replace(FROZEN, motion_rigid=8))
        frame = int(made.truth.shifts[:, 1].argmax())
        moved = made.movie.frames[frame].compute().astype(float)
        shift_y, shift_x = made.truth.shifts[frame]
        rolled = ndi.shift(made.truth.template, (-shift_y, -shift_x), mode="grid-wrap")
        entered = (slice(10, -10), slice(-6, None))
        kept = (slice(10, -10), slice(10, -10))
        assert np.corrcoef(moved[kept].ravel(), rolled[kept].ravel())[0, 1] > 0.97
        assert np.corrcoef(moved[entered].ravel(), rolled[entered].ravel())[0, 1] < 0.5

    def test_sampling_equals_scipy(self):
        random = np.random.default_rng(1)
        scene = random.normal(size=(37 + 32, 53 + 32)).astype(np.float32)
        shifts = random.uniform(-12, 12, (2, 37, 53)).astype(np.float32)
        places = np.mgrid[16 : 16 + 37, 16 : 16 + 53] + shifts
        frame = simulation._sample(ndi.spline_filter(scene, output=np.float32), shifts, 16)
        # single against double precision of the places
        np.testing.assert_allclose(frame, ndi.map_coordinates(scene, places), atol=5e-5)


def _bilinear(truth, frame, axis):
    """Shift at each pixel by two passes of `numpy.interp`."""
    grid = truth.shifts_piecewise[frame, :, :, axis]
    rows = np.stack([np.interp(np.arange(53), truth.grid_x, row) for row in grid])
    return np.stack([np.interp(np.arange(37), truth.grid_y, c) for c in rows.T], axis=1)


def _inverse(shifts):
    """Places p in the frame with p + shift(p) = q, by fixed-point iteration."""
    target = np.mgrid[:37, :53].astype(float)
    place = target.copy()
    for _ in range(20):
        place = target - [ndi.map_coordinates(s, place, order=1, mode="nearest") for s in shifts]
    return place


class TestTruth:
    def test_footprints_have_unit_norm_and_no_negative_weight(self):
        footprints = simulate(replace(SMALL, n_cells=15)).truth.footprints
        norms = np.sqrt(footprints.multiply(footprints).sum(0))
        np.testing.assert_allclose(norms, 1, atol=1e-5)  # float32
        assert footprints.data.min() > 0
        assert footprints.shape == (37 * 53, 15)

    def test_nucleus_is_darker_than_the_ring(self):
        truth = simulate(replace(SMALL, cell_radius=8, n_cells=1, seed=2)).truth
        image = truth.footprints.toarray().reshape(truth.shape)
        y, x = ndi.center_of_mass(image > 0)
        assert image[round(y), round(x)] < 0.7 * image.max()

    def test_traces_are_spikes_convolved_with_a_difference_of_exponentials(self):
        parameters = replace(SMALL, bleaching=0, spike_rate=1)
        truth = simulate(parameters).truth
        time = np.arange(1, 151) / 30
        kernel = np.exp(-time / 0.6) - np.exp(-time / 0.07)
        for spikes, trace in zip(truth.spikes, truth.traces, strict=True):
            shape = np.convolve(spikes, kernel / kernel.max())[:150]
            model = np.stack([np.ones(150), shape], axis=1)
            (rest, amplitude), *_ = np.linalg.lstsq(model, trace, rcond=None)
            assert rest > 0
            assert amplitude >= 0
            np.testing.assert_allclose(model @ [rest, amplitude], trace, rtol=1e-4)  # float32

    def test_footprints_times_traces_are_the_cells_in_the_movie(self):
        parameters = replace(STILL, bleaching=0, neuropil=0, n_out_of_focus=0, spike_rate=3)
        made = simulate(replace(parameters, photons=2000, gain=1, n_frames=256))
        truth = made.truth
        rest = truth.traces[:, :1] * (truth.spikes[:, :1] == 0)
        assert (rest > 0).all()  # so that the first frame is at rest
        change = (truth.footprints @ (truth.traces - rest)).reshape(37, 53, -1)
        expected = truth.template + change.mean(-1)
        found = made.movie.frames.compute().mean(0)
        assert change.mean(-1).max() > 300
        # cells of the margin reach 1 px in; shot noise of the mean is about sqrt(4000 / 256) = 4
        inner = (slice(2, -2), slice(2, -2))
        np.testing.assert_allclose(found[inner], expected[inner], atol=25)

    def test_some_cells_are_nearly_silent(self):
        spikes = simulate(
            replace(SMALL, n_cells=20, silent_fraction=0.2, spike_rate=5)
        ).truth.spikes
        assert (spikes.sum(1) < 3).sum() == 4

    def test_neuropil_varies_smoothly_by_as_much_as_asked(self):
        parameters = replace(
            STILL,
            n_cells=0,
            n_out_of_focus=0,
            neuropil=0.2,
            bleaching=0,
            photons=2000,
            n_frames=600,
        )
        frames = _compute(parameters).astype(float) - 200
        change = ndi.uniform_filter(frames / frames.mean(0), (0, 5, 5))
        # the finite recording and the places between nodes differ from the mean of the nodes
        assert change.std(0).mean() == pytest.approx(0.2, rel=0.35)
        near = np.corrcoef(change[:, 18, 20], change[:, 18, 24])[0, 1]
        far = np.corrcoef(change[:, 3, 3], change[:, 33, 49])[0, 1]
        assert near > 0.95
        assert far < near


class TestScenery:
    SCENERY = replace(SMALL, n_dendrites=4, n_boutons=5, pulsation=0.3)

    def test_there_is_none_unless_asked_for(self):
        scenery = simulate(SMALL).scenery
        counts = {kind: places.shape for kind, places in scenery.items()}
        assert counts["dendrite"] == counts["bouton"] == (37 * 53, 0)
        assert set(counts) == {"dendrite", "bouton", "out of focus", "vessel"}

    @pytest.mark.parametrize(
        "change", [{"n_dendrites": 4}, {"n_boutons": 5}, {"pulsation": 0.3}, {"nucleus": 0.2}]
    )
    @pytest.mark.parametrize("seed", [0, 1])
    def test_cells_motion_and_noise_keep_their_random_numbers(self, change, seed):
        before = simulate(replace(SMALL, seed=seed)).truth
        after = simulate(replace(SMALL, seed=seed, **change)).truth
        assert np.array_equal(before.spikes, after.spikes)
        assert np.array_equal(before.shifts_piecewise, after.shifts_piecewise)
        if "nucleus" not in change:
            assert all(
                np.array_equal(getattr(before.footprints, n), getattr(after.footprints, n))
                for n in CSC_PARTS
            )

    @pytest.mark.parametrize("kind", ["dendrite", "bouton"])
    def test_what_it_adds_is_where_the_scenery_says(self, kind):
        count = {"dendrite": {"n_dendrites": 3}, "bouton": {"n_boutons": 9}}[kind]
        made = simulate(replace(SMALL, **count))
        without = simulate(SMALL).truth.template - 200
        template = made.truth.template - 200
        # the mean of the light is the one asked for: all else is darker by one factor
        added = template - np.median(template / without) * without
        where = made.scenery[kind].sum(axis=1).reshape(37, 53) > 0
        assert 0 < where.mean() < 0.4
        assert added[where].min() > 0
        np.testing.assert_allclose(added[~where], 0, atol=1e-2)  # float32 of 300 counts

    @pytest.mark.parametrize("radius", [4.0, 8.0])
    def test_dendrites_are_thin_and_long_and_boutons_small(self, radius):
        parameters = replace(SMALL, height=137, width=153, cell_radius=radius, n_cells=0)
        scenery = simulate(replace(parameters, n_dendrites=20, n_boutons=20)).scenery
        dendrites, boutons = scenery["dendrite"], scenery["bouton"]
        assert 10 < dendrites.shape[1] <= 20  # the others lie beyond the field
        assert np.median(spreads(dendrites, (137, 153))) > 2
        disc = np.pi * radius**2
        # 0.6 radii at half the maximum are 0.92 at a fifth; a tenth more for beads
        assert (areas(dendrites) < 12 * 0.92 * 1.1 / np.pi * disc).all()
        # 0.7 radii at half the maximum are 0.53 on each side at a fifth, and a pixel's rounding
        assert areas(boutons).max() < np.pi * (0.53 * radius + 0.75) ** 2

    def test_dendrites_and_boutons_are_active(self):
        quiet = replace(STILL, n_cells=0, n_out_of_focus=0, neuropil=0, bleaching=0, photons=2000)
        made = simulate(replace(quiet, n_dendrites=4, n_boutons=5, spike_rate=3))
        frames = made.movie.frames.compute().astype(float)
        change = frames.std(0) / np.sqrt(frames.mean(0))
        places = [made.scenery[kind] for kind in ("dendrite", "bouton")]
        where = sum(masks(each, 0.5).sum(axis=1) for each in places).reshape(37, 53) > 0
        where_none = sum(each.sum(axis=1) for each in places).reshape(37, 53) == 0
        assert np.median(change[where]) > 2 * np.median(change[where_none])

    @pytest.mark.parametrize("seed", [0, 1])
    def test_both_edges_of_a_pulsating_vessel_change_together(self, seed):
        quiet = replace(STILL, n_cells=0, n_out_of_focus=0, neuropil=0, bleaching=0, photons=2000)
        made = simulate(replace(quiet, pulsation=0.2, seed=seed))
        frames = made.movie.frames.compute().astype(float)
        shadow = made.scenery["vessel"].toarray().reshape(37, 53)
        change = frames.std(0) / frames.mean(0)
        # the shadow of half its depth is where the vessel ends; noise is 1 / sqrt(1000) = 0.03
        edge = (shadow > 0.3 * shadow.max()) & (shadow < 0.7 * shadow.max())
        assert np.median(change[edge]) > 0.08
        assert np.median(change[shadow == 0]) < 0.04
        middle = (np.arange(53) * shadow).sum(1, keepdims=True) / shadow.sum(1, keepdims=True)
        left = np.arange(53) < middle
        sides = [frames[:, edge & side].mean(1) for side in (left, ~left)]
        assert np.corrcoef(*sides)[0, 1] > 0.95

    def test_spread_of_sizes(self):
        made = [
            simulate(replace(SMALL, height=137, width=153, n_cells=40, radius_spread=spread)).truth
            for spread in (0, 0.2, 0.5)
        ]
        sizes = [np.sqrt(areas(truth.footprints)) for truth in made]
        spreads_of_sizes = [size.std() / size.mean() for size in sizes]
        assert spreads_of_sizes[0] < spreads_of_sizes[1] < spreads_of_sizes[2]
        # a uniform distribution's is its half-width over sqrt(3); outlines vary too
        assert spreads_of_sizes[2] == pytest.approx(0.5 / np.sqrt(3), rel=0.3)

    def test_a_soma_is_filled_where_the_nucleus_is_not_dark(self):
        parameters = replace(SMALL, cell_radius=8, n_cells=1, seed=2)
        truth = simulate(replace(parameters, nucleus=0)).truth
        image = truth.footprints.toarray().reshape(truth.shape)
        y, x = ndi.center_of_mass(image > 0)
        assert image[round(y), round(x)] > 0.7 * image.max()

    def test_part_of_the_movie_equals_the_same_part_of_the_whole(self):
        movie = simulate(self.SCENERY).movie
        box = (slice(60, 131), slice(3, 21), slice(40, 53))
        assert np.array_equal(movie.frames[box].compute(), movie.frames.compute()[box])


class TestSample:
    def test_truth_is_the_stored_one(self):
        """What was added to the simulation since has not changed its recordings."""
        made = runpy.run_path(str(SAMPLE_DATA / "make_sample.py"))
        truth, stored = simulate(made["SAMPLE"]).truth, load_truth(SAMPLE_DATA / "sample_truth.npz")
        assert np.array_equal(truth.spikes, stored.spikes)
        assert np.array_equal(truth.footprints.indices, stored.footprints.indices)
        # exponentials and sums may differ in the last bits between builds of numpy
        np.testing.assert_allclose(truth.footprints.data, stored.footprints.data, rtol=1e-5)
        np.testing.assert_allclose(truth.traces, stored.traces, rtol=1e-4)
        np.testing.assert_allclose(truth.template, stored.template, rtol=1e-5)
        np.testing.assert_allclose(truth.shifts, stored.shifts, atol=1e-5)

    def test_script_makes_the_stored_recording(self, tmp_path):
        made = runpy.run_path(str(SAMPLE_DATA / "make_sample.py"))
        frames = simulate(made["SAMPLE"]).movie.frames[:3].compute()
        with tifffile.TiffFile(SAMPLE_DATA / "sample.tif") as file:
            assert file.is_imagej
            assert file.series[0].shape == (800, 96, 128)
            # normal and Poisson numbers may differ in the last bit between builds of numpy
            assert np.mean(file.asarray(key=range(3)) == frames) > 0.99
        truth = load_truth(SAMPLE_DATA / "sample_truth.npz")
        assert (truth.n_cells, truth.shape, truth.frame_rate) == (28, (96, 128), 15.0)

    def test_files_are_small(self):
        sizes = [(SAMPLE_DATA / name).stat().st_size for name in ("sample.tif", "sample_truth.npz")]
        assert sum(sizes) <= 10e6
