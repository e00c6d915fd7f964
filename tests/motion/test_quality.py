"""Measures of motion correction, against motion that is known because it was made or simulated."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from dask.delayed import Delayed, delayed

from napari_calcium.motion.quality import combine, combine_lazily, measure, sampling
from napari_calcium.simulation import SimulationParameters, simulate

DTYPES = ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64", ">u2", "int64"]


def binned(image):
    """Mean of 2 x 2 px of the last two axes, by an oracle without a loop over rows."""
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(0, n % 2) for n in image.shape[-2:]])
    ones = np.pad(np.ones(image.shape[-2:]), [(0, n % 2) for n in image.shape[-2:]])
    corners = [(slice(i, None, 2), slice(j, None, 2)) for i in (0, 1) for j in (0, 1)]
    return sum(padded[..., y, x] for y, x in corners) / sum(ones[y, x] for y, x in corners)


def oracle_correlation(frame, template):
    reference = binned(template.astype(np.float64))
    seen = np.isfinite(reference)
    return np.corrcoef(binned(frame.astype(np.float64))[seen], reference[seen])[0, 1]


def movie_like(rng, template, n, dtype):
    frames = template + 10 * rng.normal(size=(n, *template.shape))
    return frames.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(frames).astype(dtype)


def judged(frames, template, cut=100):
    every = sampling(len(frames))
    starts = range(0, len(frames), cut)
    return combine([measure(frames[i : i + cut], template, i, every) for i in starts], template)


# -------------------------------------------------------------------------------------- measure


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("field", [(37, 53), (38, 54), (3, 37, 53)])
def test_correlation_is_pearsons_after_binning(dtype, field):
    rng = np.random.default_rng(0)
    template = (60 + 12 * rng.normal(size=field)).astype(np.float32)
    template[..., :3, :] = np.nan
    template[..., 20, 30] = np.inf
    frames = movie_like(rng, np.nan_to_num(template, nan=60, posinf=60), 6, dtype)
    measured = measure(frames, template, 0, 1)
    expected = [oracle_correlation(frame, template) for frame in frames]
    # products are single precision
    np.testing.assert_allclose(measured.correlation, expected, atol=2e-6)
    assert measured.correlation.dtype == np.float32


def test_a_large_offset_does_not_cost_precision():
    rng = np.random.default_rng(0)
    scene = rng.normal(size=(37, 53))
    frames = np.rint(65000 + 5 * (scene + rng.normal(size=(5, 37, 53)))).astype(np.uint16)
    template = (5 * scene).astype(np.float32)
    expected = [oracle_correlation(frame, template) for frame in frames]
    np.testing.assert_allclose(measure(frames, template, 0, 1).correlation, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("uint16", 65000, 65535),
        ("uint8", 0, 255),
        ("int16", -32768, 32767),
        ("int32", -(2**31), 2**31 - 1),
    ],
)
def test_total_is_exact(dtype, low, high):
    frames = np.random.default_rng(0).integers(low, high, (300, 37, 53), dtype, endpoint=True)
    measured = measure(frames, np.ones((37, 53), np.float32), 0, 100)
    np.testing.assert_array_equal(measured.total, frames.sum(axis=0, dtype=np.int64))
    assert measured.n_frames == 300


def test_sums_of_very_many_frames_do_not_overflow():
    frames = np.broadcast_to(np.uint16(65535), (70000, 2, 3))
    measured = measure(frames, np.ones((2, 3), np.float32), 0, 10**6)
    np.testing.assert_array_equal(measured.total, 65535.0 * 70000)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_frames_and_templates_without_contrast_have_no_correlation(dtype):
    template = np.random.default_rng(0).normal(size=(37, 53)).astype(np.float32)
    frames = np.full((2, 37, 53), 7.1).astype(dtype)
    assert not measure(frames, template, 0, 1).correlation.any()
    assert not measure(frames + frames, template, 0, 1).correlation.any()
    varied = np.arange(37 * 53).reshape(1, 37, 53).astype(dtype)
    for constant in (0.0, 1e6, np.nan):
        assert not measure(varied, np.full((37, 53), constant, np.float32), 0, 1).correlation.any()


def test_pixels_that_are_not_finite_count_as_the_mean_of_their_frame():
    rng = np.random.default_rng(0)
    frames = rng.normal(50, 5, size=(3, 37, 53)).astype(np.float32)
    frames[0, :4] = np.nan
    frames[1, 8, 9] = -np.inf
    frames[2] = np.nan
    before = frames.copy()
    template = rng.normal(size=(37, 53)).astype(np.float32)
    filled = np.zeros_like(frames)
    for i in (0, 1):
        known = np.isfinite(frames[i])
        filled[i] = np.where(known, frames[i], frames[i][known].mean())
    measured, expected = measure(frames, template, 0, 1), measure(filled, template, 0, 1)
    np.testing.assert_allclose(measured.total, expected.total, rtol=1e-6)
    np.testing.assert_allclose(measured.correlation, expected.correlation, atol=1e-6)
    assert measured.correlation[2] == 0
    assert np.isfinite(measured.sampled).all()
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize(
    ("field", "sample"),
    [((37, 53), (37, 53)), ((256, 256), (256, 256)), ((301, 411), (150, 205)), ((2, 9, 5), (9, 5))],
)
def test_sampled_frames_are_binned(field, sample):
    rng = np.random.default_rng(0)
    template = rng.normal(500, 20, field).astype(np.float32)
    frames = rng.integers(400, 600, (25, *field)).astype(np.uint16)
    measured = measure(frames, template, start=7, every=10)
    assert measured.sampled.shape == (3, *sample)
    assert measured.sampled.nbytes <= 3 * 2**17

    def small(image):
        factor = field[-1] // sample[-1]
        plane = image.astype(np.float64).reshape(-1, *field[-2:]).mean(axis=0)
        plane = plane[: sample[0] * factor, : sample[1] * factor]
        return plane.reshape(sample[0], factor, sample[1], factor).mean(axis=(1, 3))

    expected = np.stack([small(frames[i]) - small(template) for i in (3, 13, 23)])
    # half precision of a difference of up to 10 of the template's standard deviation
    unit = small(template).std()
    np.testing.assert_allclose(measured.sampled * unit, expected, atol=0.005 * unit)


def test_a_frame_is_measured_the_same_in_every_run():
    rng = np.random.default_rng(0)
    template = rng.normal(100, 20, (37, 53)).astype(np.float32)
    frames = movie_like(rng, template, 40, "uint16")
    whole = measure(frames, template, 0, 3)
    parts = [measure(frames[i : i + 7], template, i, 3) for i in range(0, 40, 7)]
    for name in ("correlation", "sampled"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    np.testing.assert_array_equal(sum(part.total for part in parts), whole.total)
    first, second = combine([whole], template), combine(parts, template)
    assert first.crispness == second.crispness
    np.testing.assert_allclose(first.residual_flow, second.residual_flow, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 40, 1000])
def test_measures_combined_in_a_tree_are_those_combined_at_once(n):
    rng = np.random.default_rng(0)
    template = rng.normal(100, 20, (37, 53)).astype(np.float32)
    frames = movie_like(rng, template, n, "uint16")
    parts = [measure(frames[i : i + 7], template, i, 10) for i in range(0, n, 7)]
    once = combine(parts, template)
    lazily = combine_lazily([delayed(part) for part in parts], template)
    assert isinstance(lazily, Delayed)
    tree = lazily.compute(scheduler="sync")
    np.testing.assert_array_equal(tree.correlation, once.correlation)
    np.testing.assert_array_equal(tree.principal_motion, once.principal_motion)
    assert tree.crispness == pytest.approx(once.crispness, rel=1e-6)  # float32, summed otherwise
    np.testing.assert_allclose(tree.residual_flow, once.residual_flow, rtol=1e-4)


def test_crops_and_turned_frames_are_understood():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 500, (4, 60, 70)).astype(np.uint16)
    template = rng.normal(size=(37, 53)).astype(np.float32)
    crop = frames[:, 5:42, 60:7:-1]
    assert measure(crop, template, 0, 1).correlation.tolist() == (
        measure(crop.copy(), template, 0, 1).correlation.tolist()
    )


def test_frames_and_template_must_have_one_field():
    with pytest.raises(ValueError, match="template"):
        measure(np.zeros((3, 37, 53)), np.zeros((53, 37), np.float32), 0, 1)


@pytest.mark.parametrize("n", [1, 500, 501, 1000, 1001, 10**6])
def test_sampling_takes_many_but_not_too_many(n):
    assert min(n, 250) <= len(range(0, n, sampling(n))) <= 500


# -------------------------------------------------------------------------------------- combine


def undone(frames, truth, part):
    """Frames resampled by a part of the true, piecewise shifts."""
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]].astype(np.float32)
    weights = [
        np.stack([np.interp(np.arange(n), nodes, unit) for unit in np.eye(len(nodes))], axis=1)
        for n, nodes in zip(frames.shape[1:], (truth.grid_y, truth.grid_x), strict=True)
    ]
    moved = []
    for frame, shifts in zip(frames, truth.shifts_piecewise, strict=True):
        dy, dx = (
            (weights[0] @ (part * along) @ weights[1].T).astype(np.float32)
            for along in np.moveaxis(shifts, -1, 0)
        )
        moved.append(
            cv2.remap(
                frame.astype(np.float32),
                x - dx,
                y - dy,
                cv2.INTER_CUBIC,
                None,
                cv2.BORDER_REPLICATE,
            )
        )
    return np.rint(np.stack(moved)).astype(frames.dtype)


@pytest.mark.parametrize(("photons", "seed"), [(12.0, 0), (12.0, 1), (2.0, 2)])
def test_each_measure_is_the_better_the_more_of_the_motion_is_undone(photons, seed):
    parameters = SimulationParameters(
        height=96, width=128, n_frames=300, photons=photons, seed=seed
    )
    simulation = simulate(parameters)
    frames = simulation.movie.frames.compute(scheduler="synchronous")
    truth = simulation.truth
    series = [
        judged(undone(frames, truth, part), truth.template) for part in (-0.4, 0.0, 0.5, 0.8, 1.0)
    ]
    assert (np.diff([quality.correlation.mean() for quality in series]) > 0).all()
    assert (np.diff([quality.crispness for quality in series]) > 0).all()
    assert (np.diff([quality.residual_flow for quality in series]) < 0).all()
    assert (np.diff([quality.principal_motion.mean() for quality in series]) < 0).all()
    assert (np.diff([quality.principal_motion.max() for quality in series]) < 0).all()
    raw, half = series[1], series[2]
    # half of the motion is left; 8 % are measured, and noise of 0.1 px adds by squares
    assert half.residual_flow == pytest.approx(raw.residual_flow / 2, rel=0.1)
    # motion is spread over components, the fewer the smaller it is: up to 21 % less is measured
    largest = half.principal_motion.max() / raw.principal_motion.max()
    assert 0.35 < largest < 0.55
    # nothing left: steps of the search, and photon noise in the means of 60 and of 15 frames
    assert series[-1].principal_motion.max() < 0.16
    assert series[-1].residual_flow < 0.2


@pytest.mark.parametrize("place", [(3, 0), (0, 3), (-1.5, 2)])
def test_motion_is_measured_in_pixels(film, place):
    frames = film((48, 68), [(0, 0)] * 40 + [place] * 40, photons=50)
    quality = judged(frames, frames.mean(axis=0, dtype=np.float32))
    # the ends of the first component are the two halves; the mean of all lies between them
    assert quality.principal_motion[0] == pytest.approx(np.hypot(*place), abs=0.1)
    # the mean of all is a double image, which optical flow follows less well
    assert quality.residual_flow == pytest.approx(np.hypot(*place) / 2, rel=0.3)


def test_motion_in_binned_frames_is_measured_in_pixels_of_the_field(film):
    still, moved = film((290, 340), [(0, 0), (0, 4)])
    rng = np.random.default_rng(0)
    scene = np.stack([still] * 15 + [moved] * 15)
    frames = rng.poisson(30 * scene.clip(0)).astype(np.uint16)
    quality = judged(frames, frames.mean(axis=0, dtype=np.float32))
    assert quality.principal_motion[0] == pytest.approx(4, abs=0.1)
    assert quality.residual_flow == pytest.approx(2, rel=0.3)


def test_activity_is_no_motion(film):
    rng = np.random.default_rng(0)
    still = film((48, 68), [(0, 0)])[0]
    cells = np.zeros((5, 48, 68))
    for cell, y, x in zip(cells, rng.integers(8, 40, 5), rng.integers(8, 60, 5), strict=True):
        cell[y - 3 : y + 4, x - 3 : x + 4] = 1
    activity = rng.random((200, 5)) ** 4
    frames = rng.poisson(20 * (still + np.einsum("tc,cyx->tyx", activity, cells))).astype(np.uint16)
    quality = judged(frames, 20 * still)
    # steps of 0.05 px; a cell of 7 x 7 px that lights up is not moved, only brighter
    assert np.median(quality.principal_motion) < 0.06
    assert quality.principal_motion.max() < 0.3
    assert quality.residual_flow < 0.2


def test_gain_and_offset_do_not_matter(film):
    places = np.random.default_rng(0).normal(0, 1, (60, 2))
    frames = film((37, 53), places, photons=20)
    template = frames.mean(axis=0, dtype=np.float32)
    first = judged(frames, template)
    second = judged(frames.astype(np.int32) * 4 - 3000, template * 4 - 3000)
    np.testing.assert_allclose(first.correlation, second.correlation, atol=1e-5)
    np.testing.assert_allclose(first.crispness, second.crispness, rtol=1e-5)
    np.testing.assert_allclose(first.residual_flow, second.residual_flow, rtol=0.01)
    np.testing.assert_allclose(
        first.principal_motion[:5], second.principal_motion[:5], atol=0.051
    )  # one step of the search


def test_crispness_is_the_norm_of_the_gradient():
    x = np.arange(256)
    image = np.broadcast_to(np.sin(2 * np.pi * 4 * x / 256), (90, 256))
    frames = np.stack([image] * 3) + 5
    # a wave's gradient is 2 pi / period of it; the borders repeat, and 0.7 px smooth it, by < 2 %
    assert judged(frames, frames[0].astype(np.float32)).crispness == pytest.approx(
        2 * np.pi / 64, rel=0.02
    )


def test_volumes_are_measured(film):
    places = [(0, 0)] * 30 + [(2, -1)] * 30
    moving = np.stack([film((37, 53), places, 60, seed) for seed in (0, 1, 2)], axis=1)
    still = np.stack([film((37, 53), [(0, 0)] * 60, 60, seed) for seed in (0, 1, 2)], axis=1)
    template = still.mean(axis=0, dtype=np.float32)
    recorded, corrected = judged(moving, template), judged(still, template)
    assert corrected.correlation[30:].min() > recorded.correlation[30:].max()
    assert corrected.crispness > 1.05 * recorded.crispness
    assert recorded.principal_motion[0] == pytest.approx(np.hypot(2, 1), abs=0.25)
    assert corrected.principal_motion.max() < 0.16
    assert corrected.residual_flow < 0.3 * recorded.residual_flow


def test_what_the_template_does_not_know_is_left_out(film):
    frames = film((48, 68), [(0, 0)] * 60, photons=30)
    template = frames.mean(axis=0, dtype=np.float32)
    template[:, 58:] = np.nan
    spoilt = frames.copy()
    spoilt[:, :, 58:] = np.random.default_rng(0).integers(0, 60000, (60, 48, 10))
    first, second = judged(frames, template), judged(spoilt, template)
    np.testing.assert_allclose(first.correlation, second.correlation, atol=1e-6)
    assert first.crispness == second.crispness
    assert first.residual_flow == second.residual_flow
    np.testing.assert_array_equal(first.principal_motion, second.principal_motion)


def test_short_recordings(film):
    frames = film((37, 53), [(0, 0)] * 20, photons=30)
    template = frames.mean(axis=0, dtype=np.float32)
    for n, components, has_flow in ((1, 0, False), (9, 0, False), (10, 9, False), (20, 19, True)):
        quality = judged(frames[:n], template)
        assert quality.correlation.shape == (n,)
        assert quality.principal_motion.shape == (components,)
        assert np.isfinite(quality.residual_flow) == has_flow
        assert quality.crispness > 0


@pytest.mark.parametrize("field", [(1, 1), (1, 50), (50, 1), (3, 7), (8, 9), (2, 8, 9)])
@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_empty_and_tiny_movies_have_no_motion(field, value):
    frames = np.full((25, *field), value, np.float32)
    quality = judged(frames, frames[0])
    assert not quality.correlation.any()
    assert quality.crispness == 0
    assert not quality.principal_motion.any()
    assert not quality.residual_flow > 1e-6


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="nothing"):
        combine([], np.zeros((37, 53), np.float32))


def test_a_run_without_sampled_frames_counts_too() -> None:
    """Runs are shorter than the distance of sampled frames in very long movies."""
    frames = np.random.default_rng(3).integers(0, 999, (60, 37, 53), np.uint16)
    template = frames.mean(axis=0, dtype=np.float32)
    runs = [slice(0, 21), slice(21, 39), slice(39, 60)]
    parts = [measure(frames[run], template, run.start, 20) for run in runs]
    assert [len(part.sampled) for part in parts] == [2, 0, 1]
    assert combine(parts, template).correlation.shape == (60,)
    whole = combine([measure(frames, template, 0, 20)], template)
    assert combine(parts, template).crispness == pytest.approx(whole.crispness, rel=1e-6)
