from __future__ import annotations

from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from dask.delayed import delayed
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_calcium.activity import dff as module
from napari_calcium.activity.dff import (
    Dff,
    DffParameters,
    dff,
    dff_attrs,
    dff_components,
    dff_to_arrays,
)
from napari_calcium.activity.level import resting_percentiles
from napari_calcium.activity.neuropil import Fluorescence, above_background
from napari_calcium.activity.percentile import running_percentile
from napari_calcium.components import Background, Components
from napari_calcium.errors import InputError
from napari_calcium.movie import Movie

RATE = 30.0
EIGHTH = DffParameters(percentile=8.0)
KINDS = ["dff", "detrended"]


def light(raw: np.ndarray, behind: float = 0.0) -> Fluorescence:
    raw = np.asarray(raw, np.float64)
    return Fluorescence(raw, raw, np.full(raw.shape, behind))


def known_cell(n_frames: int = 3000, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Fluorescence of one cell resting at 80 on a background of 20, and its true dF/F."""
    resting = 80 + drift * np.arange(n_frames) / n_frames
    change = np.zeros(n_frames)
    for start in range(200, n_frames, 700):
        change[start:] += 0.5 * 0.95 ** np.arange(n_frames - start)
    return resting + (resting + 20) * change, change


# ------------------------------------------------------------------------------- known truth


@pytest.mark.parametrize("parameters", [EIGHTH, DffParameters()])
@pytest.mark.parametrize("drift", [0.0, 8.0])
def test_known_change_is_recovered(parameters: DffParameters, drift: float) -> None:
    """To 0.001; on a slope the 8th percentile is that of 12.6 s earlier, 0.01 here, so 0.02."""
    fluorescence, truth = known_cell(drift=drift)
    result = dff(light(fluorescence[None], 20), parameters, RATE)
    assert np.abs(result.traces[0] - truth).max() < (0.02 if drift else 1e-3)
    assert not result.floored.any()
    assert result.traces.dtype == result.baseline.dtype == np.float32
    assert (result.kind, result.output) == ("dff", "raw")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_automatic_is_not_biased_by_noise(seed: int) -> None:
    """F0 is 100; the 8th percentile makes 1.4 sd of the noise, 0.14, of nothing."""
    fluorescence, truth = known_cell(9000)
    noisy = fluorescence + 10 * np.random.default_rng(seed).normal(size=9000)
    found = dff(light(noisy[None], 20), DffParameters(), RATE)
    assert abs(np.mean(found.traces[0] - truth)) < 0.01
    assert 40 < found.percentile[0] <= 50
    eighth = dff(light(noisy[None], 20), EIGHTH, RATE)
    assert np.mean(eighth.traces[0] - truth) > 0.1
    assert eighth.percentile[0] == 8


@pytest.mark.parametrize("window", [0.0, 30.0])
@pytest.mark.parametrize("percentile", [0.0, 8.0])
def test_baseline_is_what_was_divided_by(window: float, percentile: float) -> None:
    fluorescence, _ = known_cell()
    noisy = (fluorescence + np.random.default_rng(1).normal(size=3000))[None]
    parameters = DffParameters(window=window, percentile=percentile)
    result = dff(light(noisy, 20), parameters, RATE)
    frames = 900 if window else 6001
    level = percentile or resting_percentiles(noisy, int(window * RATE))
    resting = running_percentile(noisy, frames, level)
    np.testing.assert_allclose(result.baseline, resting + 20, rtol=1e-6)
    np.testing.assert_allclose(result.traces * result.baseline, noisy - resting, atol=1e-4)
    assert (np.ptp(result.baseline) == 0) == (window == 0)


def test_detrended_is_what_is_left_of_the_baseline() -> None:
    """In counts, the background not in it, not floored, and so named."""
    fluorescence, _ = known_cell()
    rows = np.stack([fluorescence, fluorescence - 500])
    result = dff(light(rows, 20), EIGHTH, RATE, "one-photon")
    resting = running_percentile(rows, 900, 8.0)
    np.testing.assert_array_equal(result.baseline, resting)
    np.testing.assert_allclose(result.traces, rows - resting, atol=1e-4)
    np.testing.assert_allclose(result.traces[1], result.traces[0], atol=1e-4)
    assert not result.floored.any()
    assert result.kind == "detrended"
    assert dff(light(rows), replace(EIGHTH, kind="detrended"), RATE).kind == "detrended"


@pytest.mark.parametrize("kind", KINDS)
def test_denoised_is_over_the_baseline_of_raw(kind: str) -> None:
    """Denoised light of another offset: its own rest is taken away, F0 is that of raw light."""
    fluorescence, truth = known_cell()
    raw = (fluorescence + 2 * np.random.default_rng(2).normal(size=3000))[None]
    both = Fluorescence(raw, fluorescence[None] - 80, np.full((1, 3000), 20.0))
    parameters = DffParameters(kind=kind)
    expected = dff(both, parameters, RATE)
    result = dff(both, replace(parameters, output="denoised"), RATE)
    np.testing.assert_array_equal(result.baseline, expected.baseline)
    scale = 1 if kind == "dff" else 100
    assert np.abs(result.traces[0] - truth * scale).max() < 0.01 * scale
    assert (expected.output, result.output) == ("raw", "denoised")


@pytest.mark.parametrize("bleaching", ["polynomial", "exponential"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["raw", "denoised"])
def test_bleaching_is_removed(bleaching: str, kind: str, output: str) -> None:
    """Under one percentile for the whole recording, the light falls by 30 %.

    What is left is the noise of the estimate, 2 %, against an error of up to 20 % without.
    """
    n_frames = 9000
    _, truth = known_cell(n_frames)
    falls = 0.7 + 0.3 * np.exp(-3 * np.arange(n_frames) / n_frames)
    if bleaching == "polynomial":
        falls = np.linspace(1, 0.7, n_frames)
    calcium = 100 * truth * (falls if kind == "dff" else 1)
    denoised = (80 * falls + calcium)[None]
    raw = denoised + np.random.default_rng(3).normal(size=(1, n_frames))
    both = Fluorescence(raw, denoised, 20 * falls[None])
    parameters = DffParameters(kind=kind, window=0, bleaching=bleaching, output=output)
    result = dff(both, parameters, RATE)
    expected, scale = (truth, 1) if kind == "dff" else (calcium, 100)
    noise = scale * 0.01 * (raw - denoised)[0] / (falls if kind == "dff" else 1)
    left = result.traces[0] - expected - (noise if output == "raw" else 0)
    assert np.abs(left).max() < 0.02 * scale
    assert not result.trend_limited.any()
    rest = 100 * falls if kind == "dff" else 80 * falls
    assert np.abs(result.baseline[0] - rest).max() < 2
    without = dff(both, replace(parameters, bleaching="none"), RATE)
    assert np.abs(without.traces[0] - expected).max() > 0.1 * scale


def test_a_drift_that_denoising_left_out_is_not_put_in() -> None:
    """Light falls by 30 counts, the denoised traces do not: their own trend is removed."""
    _, truth = known_cell(9000)
    raw = (100 * truth + np.linspace(80, 50, 9000))[None]
    both = Fluorescence(raw, 100 * truth[None])
    parameters = DffParameters(window=0, bleaching="polynomial", output="denoised")
    result = dff(both, parameters, RATE, "one-photon")
    assert np.abs(result.traces[0] - 100 * truth).max() < 1
    np.testing.assert_allclose(result.baseline[0, [0, -1]], [80, 50], atol=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trend_that_cannot_be_fitted_is_flagged(kind: str) -> None:
    """Too short: nothing is removed and the cell flagged; as without, but for rounding."""
    fluorescence, _ = known_cell(150)
    parameters = DffParameters(kind=kind, window=2.0)
    expected = dff(light(fluorescence[None], 20), parameters, RATE)
    result = dff(light(fluorescence[None], 20), replace(parameters, bleaching="exponential"), RATE)
    assert result.trend_limited.all()
    assert not expected.trend_limited.any()
    np.testing.assert_allclose(result.traces, expected.traces, atol=1e-4)
    assert dff_attrs(result)[""]["n_trend_limited"] == 1


def test_a_trend_that_reaches_zero_is_held() -> None:
    falling = np.linspace(100, -50, 6000)[None] + np.random.default_rng(4).normal(size=(1, 6000))
    result = dff(light(falling), DffParameters(bleaching="polynomial"), RATE)
    assert result.trend_limited.all()
    assert result.floored.all()
    assert np.abs(result.traces).max() < 10


# ------------------------------------------------------------------- F0 that is no denominator


@pytest.mark.parametrize("parameters", [EIGHTH, DffParameters()])
@pytest.mark.parametrize("level", [0.0, -50.0, 1e-30])
def test_f0_near_or_below_zero_is_floored_and_flagged(
    parameters: DffParameters, level: float
) -> None:
    """With a floor of 1 noise level, dF/F of noise stays within its range of about 10."""
    noise = np.random.default_rng(2).normal(size=(2, 1000))
    traces = noise + np.array([[level], [100.0]])
    result = dff(light(traces), parameters, RATE)
    assert result.floored.tolist() == [True, False]
    assert np.abs(result.traces).max() < 10
    assert np.all(result.baseline > 0)
    higher = dff(light(traces), replace(parameters, floor=200.0), RATE)
    assert higher.floored.all()
    assert np.abs(higher.baseline / 200 - 1).max() < 0.1


@pytest.mark.parametrize("n_frames", [1, 2, 3, 31])
@pytest.mark.parametrize("level", [0.0, 5.0, -5.0, 1e-42, 1e30])
@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_flat_traces_do_not_change(n_frames: int, level: float, floor: float) -> None:
    traces = np.full((3, n_frames), level)
    result = dff(light(traces), DffParameters(floor=floor), RATE)
    np.testing.assert_array_equal(result.traces, 0)
    assert np.isfinite(result.baseline).all()
    assert result.floored.all() == (level < 1e-30)
    detrended = dff(light(traces), DffParameters(floor=floor), RATE, "one-photon")
    np.testing.assert_array_equal(detrended.traces, 0)


def test_one_spike() -> None:
    for n_frames in (2, 50, 5000):
        spike = np.full((1, n_frames), 80.0)
        spike[0, n_frames // 2] = 180.0
        result = dff(light(spike, 20), DffParameters(), RATE)
        assert np.isfinite(result.traces).all()
        if n_frames > 2:
            np.testing.assert_array_equal(result.traces, spike / 100 - 0.8)


def test_a_floor_of_next_to_nothing_gives_no_infinity() -> None:
    """Found by hypothesis: noise times the smallest number there is."""
    parameters = DffParameters(window=1.0, percentile=1e-9, floor=1e-45)
    assert np.isfinite(dff(light(np.array([[0.0, 4.0]])), parameters, 1.0).traces).all()


frames = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.sampled_from([0.0, 1e-42, np.nan, np.inf]),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(frames, frames, frames), min_size=1, max_size=50),
    st.sampled_from([1, 1, 1, 40]),
    st.builds(
        DffParameters,
        kind=st.sampled_from(KINDS),
        window=st.one_of(st.just(0.0), st.floats(0.01, 1000)),
        percentile=st.sampled_from([0.0, 8.0]),
        bleaching=st.sampled_from(["none", "none", "none", "polynomial", "exponential"]),
        output=st.sampled_from(["raw", "denoised"]),
        floor=st.floats(0, 5),
    ),
    st.booleans(),
)
def test_never_infinite_nor_nan_where_there_was_none(
    values: list[tuple[float, ...]], times: int, parameters: DffParameters, alone: bool
) -> None:
    """Whatever the light: negative, huge, with gaps; shorter than the window or longer."""
    raw, denoised, behind = np.repeat(np.array(values, np.float32).T[:, None], times, axis=2)
    result = dff(Fluorescence(raw, denoised, None if alone else behind), parameters, RATE)
    known = np.isfinite(raw) if alone else np.isfinite(raw) & np.isfinite(behind)
    shown = known & np.isfinite(denoised) if parameters.output == "denoised" else known
    np.testing.assert_array_equal(np.isfinite(result.traces), shown)
    assert not np.isinf(result.traces).any()
    assert np.isfinite(result.baseline[known]).all()
    if parameters.kind == "dff":
        assert np.all(result.baseline[known] > 0)


def test_nan_stays_where_it_was() -> None:
    fluorescence, _ = known_cell(1000)
    traces = fluorescence[None].copy()
    traces[0, [0, 500]] = [np.nan, np.inf]
    for modality in ("two-photon", "one-photon"):
        result = dff(light(traces, 20), DffParameters(), RATE, modality)
        assert np.flatnonzero(~np.isfinite(result.traces[0])).tolist() == [0, 500]
        assert np.isnan(result.traces[0, [0, 500]]).all()
        assert np.isfinite(result.baseline).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(-20, 20), st.sampled_from([0.0, 8.0]))
def test_scale_and_offset(seed: int, power: int, percentile: float) -> None:
    """dF/F has no unit; an offset of the cell that its background loses leaves F0 as it is."""
    rng = np.random.default_rng(seed)
    raw = np.round(80 * rng.gamma(2.0, size=(2, 400)))
    parameters = DffParameters(window=5.0, percentile=percentile)
    result = dff(light(raw, 1000), parameters, RATE)
    factor = 2.0**power
    scaled = dff(light(raw * factor, 1000 * factor), parameters, RATE)
    np.testing.assert_array_equal(scaled.traces, result.traces)
    np.testing.assert_array_equal(scaled.baseline, result.baseline * np.float32(factor))
    # the density of moved values may be drawn from other bins: the percentile by half of one
    moved = dff(light(raw + 500, 500), parameters, RATE)
    np.testing.assert_allclose(moved.baseline, result.baseline, atol=2.0)
    one, other = (dff(light(x), parameters, RATE, "one-photon") for x in (raw, raw + 500))
    np.testing.assert_allclose(other.traces, one.traces, atol=2.0)


# ----------------------------------------------------------------------------------- graph


def components(n_cells: int, n_frames: int, shape: tuple[int, int] = (37, 53)) -> Components:
    """Small cells on a field, with two background components."""
    rng = np.random.default_rng(3)
    pixels = shape[0] * shape[1]
    dense = rng.random((pixels, n_cells)) * (rng.random((pixels, n_cells)) < 0.005)
    dense /= np.maximum(np.linalg.norm(dense, axis=0), 1e-9)
    background = Background(sp.csc_array(rng.random((pixels, 2))), 50 * rng.random((2, n_frames)))
    traces = 100 * rng.random((n_cells, n_frames))
    residuals = rng.normal(size=(n_cells, n_frames))
    identity = np.arange(n_cells)
    return Components(sp.csc_array(dense), shape, traces, residuals, traces, background, identity)


def assert_equal(first: Dff, second: Dff) -> None:
    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed while building")


@pytest.mark.parametrize("n_cells", [0, 3, 40])
def test_builder_computes_nothing_and_gives_the_kernels_result(n_cells: int) -> None:
    cells = components(n_cells, 120)
    parameters = DffParameters(window=1.0)
    with dask.config.set(scheduler=refuse):
        lazy = dff_components(None, delayed(cells), RATE, parameters)
    result = lazy.compute(scheduler="sync")
    assert_equal(result, dff(above_background(cells), parameters, RATE))
    assert result.traces.shape == (n_cells, 120)


@pytest.mark.parametrize("neuropil", ["background", "ring"])
def test_an_offset_that_is_known_changes_nothing(neuropil: str) -> None:
    """200 counts in every pixel and frame; to float32 of what they add to F0."""
    cells, shape = components(5, 300), (37, 53)
    frames = np.random.default_rng(0).uniform(100, 200, (300, *shape)).astype(np.float32)
    background = Background(
        sp.csc_array(sp.hstack([cells.background.footprints, np.ones((37 * 53, 1))])),
        np.concatenate([cells.background.traces, np.full((1, 300), 200.0)]),
    )
    lifted = replace(cells, background=background)

    def result(cells: Components, offset: float, dark_level: float) -> Dff:
        parameters = DffParameters(window=2.0, neuropil=neuropil, dark_level=dark_level)
        movie = Movie(da.from_array(frames + np.float32(offset)), RATE)
        return dff_components(movie, delayed(cells), RATE, parameters).compute(scheduler="sync")

    expected, found = result(cells, 0, 0), result(lifted, 200, 200)
    np.testing.assert_allclose(found.traces, expected.traces, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found.baseline, expected.baseline, rtol=2e-4)
    ignored = result(lifted, 200, 0)
    assert np.all(ignored.baseline > 1.3 * expected.baseline)
    assert np.ptp(ignored.traces) < np.ptp(expected.traces)


@pytest.mark.parametrize("bleaching", ["none", "polynomial", "exponential"])
@pytest.mark.parametrize("modality", ["two-photon", "one-photon"])
def test_equal_for_every_grouping_and_worker(
    monkeypatch: pytest.MonkeyPatch, bleaching: str, modality: str
) -> None:
    cells = components(9, 320)
    parameters = DffParameters(window=3.0, bleaching=bleaching)

    def result(groups: int, values: int, **options: object) -> Dff:
        monkeypatch.setattr(module, "GROUPS", groups)
        monkeypatch.setattr(module, "VALUES_AT_ONCE", values)
        lazy = dff_components(None, delayed(cells), RATE, parameters, modality)
        return lazy.compute(**options)

    expected = result(1, 2**22, scheduler="sync")
    assert_equal(result(16, 2**22, scheduler="threads", num_workers=4), expected)
    assert_equal(result(2, 700, scheduler="sync"), expected)
    assert_equal(result(5, 1, scheduler="threads", num_workers=2), expected)


@pytest.mark.parametrize("output", ["raw", "denoised"])
def test_rings_are_read_from_the_movie(output: str) -> None:
    """Whatever its chunks; F is counts per pixel of the pixels less 0.7 of those around."""
    cells = components(4, 90)
    film = np.random.default_rng(5).poisson(100, size=(90, 37, 53)).astype(np.uint16)
    parameters = DffParameters(window=1.0, neuropil="ring", ring_pixels=50, output=output)
    results = []
    for chunks in ((90, 37, 53), (13, 20, 10)):
        movie = Movie(da.from_array(film, chunks=chunks), frame_rate=RATE)
        with dask.config.set(scheduler=refuse):
            lazy = dff_components(movie, delayed(cells), RATE, parameters)
        results.append(lazy.compute(scheduler="sync"))
    assert_equal(*results)
    assert results[0].neuropil == "ring"
    # 0.3 of 100 counts, within the noise of the baseline of a mean over some ten pixels
    np.testing.assert_allclose(results[0].baseline.mean(axis=1), 30, atol=4)


def test_the_movie_is_not_read_for_the_background() -> None:
    def broken(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read")

    frames = da.zeros((90, 37, 53), chunks=30).map_blocks(broken, meta=np.zeros((0, 0, 0)))
    lazy = dff_components(Movie(frames, RATE), delayed(components(2, 90)), RATE)
    assert lazy.compute(scheduler="sync").traces.shape == (2, 90)


def test_dff_does_not_depend_on_the_scale_of_footprints() -> None:
    """Doubled footprints with halved traces are the same cells (float32 rounding)."""
    cells = components(4, 200)
    scaled = Components(
        2 * cells.footprints,
        cells.shape,
        cells.traces / 2,
        cells.residuals / 2,
        cells.deconvolved / 2,
        cells.background,
        cells.cell_id,
    )
    first, second = (
        dff_components(None, delayed(c), RATE, replace(EIGHTH, window=2.0)).compute(
            scheduler="sync"
        )
        for c in (cells, scaled)
    )
    np.testing.assert_allclose(second.traces, first.traces, atol=1e-5)


# ------------------------------------------------------------------------- what is said of it


@pytest.mark.parametrize("output", ["raw", "denoised"])
def test_names_and_units(output: str) -> None:
    """A detrended trace is never called dF/F."""
    rows = light(known_cell()[0][None] - 80)
    parameters = DffParameters(output=output)
    relative = dff(rows, parameters, RATE)
    detrended = dff(rows, parameters, RATE, "one-photon")
    attrs = dff_attrs(relative)
    assert attrs["traces"]["units"] == "1"
    assert "dF/F" in attrs["traces"]["comment"]
    said = "dF/F (fraction); cells: 1, 1 with F0 raised to its floor."
    assert attrs[""] == {
        "summary": said,
        "kind": "dff",
        "output": output,
        "neuropil": "background",
        "n_floored": 1,
        "n_trend_limited": 0,
    }
    attrs = dff_attrs(detrended)
    assert attrs[""]["kind"] == "detrended"
    assert attrs[""]["n_floored"] == 0
    assert attrs["traces"]["units"] == "counts"
    assert "dF/F" not in str(attrs)
    assert output in attrs["traces"]["comment"]
    arrays = dff_to_arrays(relative)
    assert {name: array.shape for name, array in arrays.items()} == {
        "traces": (1, 3000),
        "baseline": (1, 3000),
        "floored": (1,),
        "percentile": (1,),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": -1}, "window is -1 s"),
        ({"percentile": 120}, "percentile is 120 %"),
        ({"kind": "dF/F"}, "kind is 'dF/F'"),
    ],
)
def test_parameters_that_cannot_be_used(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DffParameters(**values)


def test_wrong_arguments_raise() -> None:
    rows = light(np.zeros((1, 9)))
    with pytest.raises(InputError, match="frame_rate is 0 Hz"):
        dff(rows, DffParameters(), 0)
    with pytest.raises(InputError, match="marked one-photon"):
        dff(rows, DffParameters(kind="dff"), RATE, "one-photon")
    with pytest.raises(InputError, match="modality is 'three-photon'"):
        dff_components(None, delayed(None), RATE, modality="three-photon")
    with pytest.raises(ValueError, match="differ in shape"):
        dff(Fluorescence(np.zeros((1, 9)), np.zeros((1, 8))), DffParameters(), RATE)
    ring = DffParameters(neuropil="ring")
    with pytest.raises(ValueError, match="there is none"):
        dff_components(None, delayed(None), RATE, ring)
    volumes = Movie(da.zeros((9, 3, 37, 53)), RATE)
    with pytest.raises(InputError, match="dff takes movies of one plane"):
        dff_components(volumes, delayed(None), RATE, ring)
    with pytest.raises(ValueError, match="kind is 'other'"):
        Dff(np.zeros((1, 9)), np.zeros((1, 9)), np.zeros(1), np.zeros(1), kind="other")
    with pytest.raises(ValueError, match="percentile of another number"):
        Dff(np.zeros((1, 9)), np.zeros((1, 9)), np.zeros(1), np.zeros(2))
