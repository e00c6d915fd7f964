from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, ndimage, optimize

from napari_calcium.extraction import factorization
from napari_calcium.extraction.factorization import (
    activity_scores,
    graph_nmf,
    pca_ica,
    sparse_nmf,
)

FIELD = (37, 53)
ROWS, COLUMNS = np.mgrid[: FIELD[0], : FIELD[1]]

Floats = NDArray[np.float32]
Found = tuple[Floats, Floats]


def sparse(frames: Floats, n: int = 0, min_pixels: int = 10, **more: object) -> Found:
    return sparse_nmf(frames, n, 1.5, min_pixels, **more)


def graph(frames: Floats, n: int = 0, min_pixels: int = 10, **more: object) -> Found:
    return graph_nmf(frames, n, 1.0, min_pixels, **more)


def independent(frames: Floats, n: int = 0, min_pixels: int = 10, **more: object) -> Found:
    return pca_ica(frames, n, 0.15, min_pixels, **{"connected": False, **more})


ALL = pytest.mark.parametrize("find", [sparse, graph, independent])
SEEDS = pytest.mark.parametrize("seed", range(3))


def soma(y: float, x: float, radius: float = 4) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(3 * (np.hypot(ROWS - y, COLUMNS - x) - radius)))


def curve(along_y: list[float], along_x: list[float]) -> NDArray[np.float64]:
    """A dendrite of sd 1 px, along two polynomials from 0 to 1."""
    t = np.linspace(0, 1, 400)
    y, x = np.polyval(along_y, t), np.polyval(along_x, t)
    squares = (ROWS[..., None] - y) ** 2 + (COLUMNS[..., None] - x) ** 2
    return np.exp(-squares.min(axis=-1) / 2)


DENDRITES = [curve([30, -10, 8], [-20, 60, 5]), curve([-10, -18, 33], [20, 20, 6])]
"""Two curved lines that cross."""

SOMATA = [soma(*p) for p in ((10, 12), (12, 20), (28, 30), (8, 45), (30, 8), (25, 38))]
"""Of which two touch and two nearly do."""


def transients(n: int, n_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    spikes = rng.poisson(0.02, (n, n_frames)).astype(float)
    for time in range(1, n_frames):
        spikes[:, time] += 0.8 * spikes[:, time - 1]
    return spikes


def made(
    images: list[NDArray[np.float64]], seed: int, height: float = 2, n_frames: int = 600
) -> tuple[Floats, NDArray[np.float64]]:
    """Frames of zero median, noise of sd 1, and the traces."""
    rng = np.random.default_rng(seed)
    traces = transients(len(images), n_frames, rng)
    frames = rng.normal(size=(n_frames, *FIELD))
    frames += height * np.tensordot(traces.T, np.stack(images), 1)
    return (frames - np.median(frames, axis=0)).astype(np.float32), traces


def cosines(footprints: Floats, images: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Cosine of each image with each footprint, (image, footprint)."""
    flat = np.stack([image.ravel() / np.linalg.norm(image) for image in images])
    return flat @ footprints.reshape(len(footprints), -1).T


# -------------------------------------------------------------------------------- known truth


@ALL
@SEEDS
def test_two_crossing_dendrites_are_two(find: Callable[..., Found], seed: int) -> None:
    """Of noise as large as half a transient: cosines of 0.97 and more were measured."""
    frames, truth = made(DENDRITES, seed)
    footprints, traces = find(frames)
    found = cosines(footprints, DENDRITES)
    assert found.shape == (2, 2)
    assert found.max(axis=1).min() > 0.95
    for trace, best in zip(truth, found.argmax(axis=1), strict=True):
        assert np.corrcoef(trace, traces[best])[0, 1] > 0.94


@ALL
@pytest.mark.parametrize(("seed", "height", "least"), [(0, 1, 0.88), (1, 1, 0.88), (2, 5, 0.98)])
def test_each_cell_is_found_once(
    find: Callable[..., Found], seed: int, height: float, least: float
) -> None:
    """Weak ones, of the noise's height, and bright ones; 0.91 and 0.99 were measured."""
    frames, _ = made(SOMATA, seed, height)
    footprints, traces = find(frames)
    found = cosines(footprints, SOMATA)
    assert found.shape == (6, 6)
    assert sorted(found.argmax(axis=1)) == [*range(6)]
    assert found.max(axis=1).min() > least
    np.testing.assert_allclose(np.linalg.norm(footprints, axis=(1, 2)), 1, rtol=1e-5)
    assert footprints.min() == 0
    assert footprints.dtype == traces.dtype == np.float32
    energy = np.linalg.norm(traces, axis=1)
    assert (np.diff(energy) <= 0).all()


@ALL
@SEEDS
@pytest.mark.parametrize(("blur", "n"), [(0, 0), (1, 0), (0, 5)])
def test_noise_holds_nothing(find: Callable[..., Found], seed: int, blur: float, n: int) -> None:
    """White noise, and such as a registered movie has; also where components are asked for."""
    frames = np.random.default_rng(seed).normal(size=(300, *FIELD)).astype(np.float32)
    footprints, traces = find(ndimage.gaussian_filter(frames, blur, axes=(1, 2)), n)
    assert footprints.shape == (0, *FIELD)
    assert traces.shape == (0, 300)


@ALL
def test_pixels_may_differ_in_noise_or_be_dead(find: Callable[..., Found]) -> None:
    frames, _ = made(SOMATA, 0, 3)
    frames += np.random.default_rng(9).normal(0, 3, frames.shape) * (ROWS > 18)
    frames[:, :, 50:] = frames[:, 0] = 0
    footprints, traces = find(frames.astype(np.float32))
    assert len(footprints) == 6
    assert cosines(footprints, SOMATA).max(axis=1).min() > 0.85
    assert np.isfinite(footprints).all()
    assert np.isfinite(traces).all()
    assert not footprints[:, :, 50:].any()


@ALL
@pytest.mark.parametrize("n_frames", [0, 1, 2, 3, 5, 20])
@pytest.mark.parametrize("field", [FIELD, (1, 1), (2, 3)])
@pytest.mark.parametrize("n", [0, 3])
def test_little_data_hold_nothing(
    find: Callable[..., Found], n_frames: int, field: tuple[int, int], n: int
) -> None:
    noise = np.random.default_rng(0).normal(size=(n_frames, *field)).astype(np.float32)
    for frames in (noise, np.zeros_like(noise)):
        footprints, traces = find(frames, n)
        assert footprints.shape == (0, *field)
        assert traces.shape == (0, n_frames)


# ----------------------------------------------------------------------------------- parameters


@ALL
def test_frames_are_left_and_a_second_look_is_the_same(find: Callable[..., Found]) -> None:
    frames, _ = made(SOMATA, 0, 3, 300)
    before = frames.copy()
    first, second = find(frames), find(frames)
    np.testing.assert_array_equal(frames, before)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@ALL
def test_the_unit_of_frames_does_not_matter(find: Callable[..., Found]) -> None:
    """Up to float32, whose rounding the iterations enlarge."""
    frames, _ = made(SOMATA, 0, 3, 300)
    footprints, traces = find(frames)
    again, scaled = find(frames * np.float32(700))
    np.testing.assert_allclose(again, footprints, atol=1e-3)
    np.testing.assert_allclose(scaled / 700, traces, atol=0.05)


@ALL
def test_a_number_of_components_may_be_given(find: Callable[..., Found]) -> None:
    frames, _ = made(SOMATA, 0, 3, 300)
    assert 1 <= len(find(frames, 2)[0]) <= 2
    assert cosines(find(frames, 6)[0], SOMATA).max(axis=1).min() > 0.95
    assert cosines(find(frames, 30)[0], SOMATA).max(axis=1).min() > 0.8


@ALL
def test_what_is_small_or_weak_is_dropped(find: Callable[..., Found]) -> None:
    images = [soma(10, 12, 6), soma(25, 38, 2.5)]
    frames, _ = made(images, 0, 5, 300)
    assert len(find(frames)[0]) == 2
    footprints, _ = find(frames, min_pixels=60)
    assert len(footprints) == 1
    assert cosines(footprints, images)[0, 0] > 0.95
    assert len(find(frames, threshold=1e6)[0]) == 0


@ALL
def test_a_footprint_may_be_in_parts_or_not(find: Callable[..., Found]) -> None:
    """A dendrite that dives out of the plane for 10 px."""
    line = np.exp(-((ROWS - 15.0) ** 2) / 2) * ((COLUMNS < 30) | (COLUMNS > 40)) * (COLUMNS > 8)
    frames, _ = made([line], 0, 5, 300)
    whole, _ = find(frames)
    assert cosines(whole, [line])[0, 0] > 0.95
    pieces, _ = find(frames, connected=True)
    long, short = line * (COLUMNS < 35), line * (COLUMNS >= 35)
    kept = cosines(pieces, [long, short]).max(axis=1)
    assert len(pieces) == (2 if find is independent else 1)
    assert kept[0] > 0.95
    assert (kept[1] > 0.95) == (find is independent)


def test_sparsity_takes_pixels_away() -> None:
    frames, _ = made(DENDRITES, 0, 1)
    sizes = [np.count_nonzero(sparse_nmf(frames, 2, s, 10)[0]) for s in (0, 1.5, 3)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


@SEEDS
def test_what_goes_together_helps_faint_pixels(seed: int) -> None:
    """At 0.7 of the noise: 0.91 becomes 0.94."""
    frames, _ = made(DENDRITES, seed, 0.7, 800)
    alone, together = (
        cosines(graph_nmf(frames, 2, smoothness, 10)[0], DENDRITES).max(axis=1).mean()
        for smoothness in (0, 1)
    )
    assert together > alone + 0.015


@pytest.mark.parametrize(("seed", "temporal_weight"), [(0, 0), (1, 0.5), (2, 1)])
def test_independence_may_be_in_space_or_time(temporal_weight: float, seed: int) -> None:
    frames, _ = made(SOMATA, seed, 5, 300)
    footprints, _ = pca_ica(frames, 0, temporal_weight, 10)
    assert cosines(footprints, SOMATA).max(axis=1).min() > 0.9


# -------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("smoothing", [0, 1])
@pytest.mark.parametrize("blur", [0, 1])
@pytest.mark.parametrize(("field", "n_frames"), [(FIELD, 400), (FIELD, 100)])
def test_noise_stays_just_below_its_edge(
    field: tuple[int, int], n_frames: int, blur: float, smoothing: float
) -> None:
    """The largest singular value, by LAPACK, within 20 % below; 14 % were measured."""
    frames = np.random.default_rng(0).normal(size=(n_frames, *field)).astype(np.float32)
    frames = ndimage.gaussian_filter(frames, blur, axes=(1, 2))
    whitened = factorization._whitened(frames, smoothing)
    assert whitened is not None
    edge = factorization._noise_edge(factorization._noise_spectrum(whitened), n_frames)
    largest = np.linalg.norm(whitened.reshape(n_frames, -1), 2)
    assert 0.8 * edge < largest < edge


def test_the_noise_spectrum_is_that_of_the_blur() -> None:
    frames = np.random.default_rng(0).normal(size=(1000, 60, 80)).astype(np.float32)
    found = factorization._noise_spectrum(ndimage.gaussian_filter(frames, (0, 1, 1), mode="wrap"))
    frequencies = np.meshgrid(*map(np.fft.fftfreq, (60, 80)), indexing="ij")
    squares = frequencies[0] ** 2 + frequencies[1] ** 2
    # 8 %: medians of 400 powers, smoothed over some frequencies
    np.testing.assert_allclose(found, np.exp(-4 * np.pi**2 * squares), atol=0.08)


@pytest.mark.parametrize("shape", [(90, 400), (400, 90), (20, 30)])
def test_singular_vectors_are_those_of_lapack(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(shape[0], 4)) * [40, 20, 10, 8] @ rng.normal(size=(4, shape[1]))
    data = (signal + rng.normal(size=shape)).astype(np.float32)
    bins, values, pixels = factorization._decomposed(data, 20)
    left, expected, right = np.linalg.svd(data.astype(float), full_matrices=False)
    np.testing.assert_allclose(values[:4], expected[:4], rtol=1e-5)
    np.testing.assert_allclose(np.abs((bins[:, :4] * left[:, :4]).sum(axis=0)), 1, atol=1e-4)
    np.testing.assert_allclose(np.abs((pixels[:, :4] * right[:4].T).sum(axis=0)), 1, atol=1e-4)


def test_descent_comes_to_the_non_negative_least_squares() -> None:
    rng = np.random.default_rng(0)
    traces = rng.random((60, 4)).astype(np.float32)
    data = (rng.normal(size=(25, 4)) @ traces.T + rng.normal(size=(25, 60))).astype(np.float32)
    weights = np.zeros((25, 4), np.float32)
    for _ in range(300):
        factorization._descend(data @ traces, traces.T @ traces, weights)
    expected = [optimize.nnls(traces.astype(float), row)[0] for row in data.astype(float)]
    np.testing.assert_allclose(weights, expected, atol=1e-3)


def test_descent_on_a_graph_comes_to_its_minimum() -> None:
    """Half the fit's square plus half that of neighbours' differences, by a second solver."""
    rng = np.random.default_rng(0)
    height, width = 5, 7
    products = rng.normal(1, 1, (height * width, 1)).astype(np.float32)
    energy = np.float32(3)
    neighbours = np.zeros((9, height, width), np.float32)
    laplacian = np.zeros((height * width, height * width))
    for y, x in np.ndindex(height, width):
        for place, (dy, dx) in ((5, (0, 1)), (6, (1, -1)), (7, (1, 0)), (8, (1, 1))):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                weight = rng.random()
                neighbours[place, y, x] = neighbours[8 - place, y + dy, x + dx] = weight
                one, other = y * width + x, (y + dy) * width + x + dx
                laplacian[[one, other], [other, one]] -= weight
                laplacian[[one, other], [one, other]] += weight
    images = np.zeros((height * width, 1), np.float32)
    for _ in range(200):
        factorization._descend_graph(products, np.array([[energy]]), images, neighbours)
    root = linalg.cholesky(energy * (np.eye(height * width) + laplacian))
    right = linalg.solve_triangular(root, products[:, 0], trans=1)
    np.testing.assert_allclose(images[:, 0], optimize.nnls(root, right)[0], atol=1e-4)


@SEEDS
def test_rotation_undoes_a_rotation_of_sparse_sources(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    bins, pixels = (
        np.linalg.qr(rng.exponential(size=(n, 5)) * (rng.random((n, 5)) < 0.05))[0]
        for n in (900, 1961)
    )
    bins, pixels = (
        np.float32(columns * np.sign(columns.sum(axis=0))) for columns in (bins, pixels)
    )
    mixed = np.float32(mixing)
    rotation = factorization._independent(bins @ mixed, pixels @ mixed, 0.3)
    agreement = mixed @ rotation
    # sources of 5 % of 900 samples are skewed by chance a little beside their axes
    np.testing.assert_allclose(agreement.max(axis=0), 1, atol=0.01)
    np.testing.assert_allclose(agreement.max(axis=1), 1, atol=0.01)


def test_neighbours_weigh_as_much_as_they_go_together() -> None:
    """One source on the left, another on the right; none beyond the border."""
    pixels = np.zeros((*FIELD, 2), np.float32)
    pixels[:, :20, 0], pixels[:, 20:, 1] = 3, 5
    reduced = factorization._Reduced(np.zeros((9, 2), np.float32), pixels.reshape(-1, 2), 2, FIELD)
    weights = factorization._neighbours(reduced)
    np.testing.assert_allclose(weights[:, 18, 10], [0.125] * 4 + [0] + [0.125] * 4)
    np.testing.assert_allclose(weights[:, 18, 19].reshape(3, 3)[:, 2], 0)
    np.testing.assert_allclose(weights[:3, 0], 0)
    np.testing.assert_allclose(weights[[2, 5, 8], :, -1], 0)


def test_activity_scores_are_those_of_the_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 20000)).astype(np.float32)
    noise[1, 500:520] = 9
    noise[2] = 0
    scores = activity_scores(noise * np.float32(40))
    # of 20000 samples 0.135 % lie beyond 3 sd, with a mean square of 10.4
    assert abs(scores[0] - np.sqrt(27 * 10.4)) < 4
    assert abs(scores[1] ** 2 - scores[0] ** 2 - 20 * 81) < 150
    assert scores[2] == 0
