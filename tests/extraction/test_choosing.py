from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.extraction.choosing import (
    Proposal,
    guess_radius,
    propose_from_image,
    propose_from_outline,
    quilt,
)
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.extraction.patches import cut
from napari_calcium.extraction.summary_images import SummaryImagesParameters, summary_images
from napari_calcium.movie import Movie
from napari_calcium.simulation import SimulationParameters, simulate

REAL = Path(__file__).parents[3] / "shared" / "data" / "two_photon_real"
FIELD = (96, 128)


def circle(radius: float, y: float, x: float, points: int = 400) -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([y + radius * np.sin(angle), x + radius * np.cos(angle)], axis=1)


def images(movie: Movie) -> dict[str, NDArray[np.float32]]:
    lazy = summary_images(movie, SummaryImagesParameters())
    return dict(lazy.compute(scheduler="synchronous"))


def discs(radius: float, field: tuple[int, int], spacing: float) -> NDArray[np.float64]:
    y, x = np.indices(field)
    half = spacing / 2
    near = np.hypot((y + half / 2) % spacing - half, (x + half / 3) % spacing - half)
    return np.clip(radius + 0.5 - near, 0, 1)


# ------------------------------------------------------------------------------------ outline


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("turn", [1, -1])
def test_the_radius_is_that_of_the_disc_of_the_area(closed: bool, turn: int) -> None:
    """An L of 75 px, whatever its direction and whether its first point is repeated."""
    points = np.array([(20, 30), (20, 40), (25, 40), (25, 35), (30, 35), (30, 30)], float)[::turn]
    outline = np.concatenate([points, points[:1]]) if closed else points
    found = propose_from_outline(outline, (320, 256)).cell_radius
    assert found == pytest.approx(math.sqrt(75 / math.pi), abs=0.005)  # two digits are kept


@pytest.mark.parametrize(
    ("radius", "field", "size", "overlap"),
    [
        (5.0, (512, 480), 64, 20),  # the defaults of source extraction
        (1.6, (512, 480), 32, 7),  # no smaller
        (7.3, (512, 480), 92, 30),  # 93.4 px to a multiple of 4
        (25.0, (512, 480), 256, 100),  # no larger
        (40.0, (512, 480), 320, 160),  # but twice the overlap
        (5.0, (37, 53), 53, 20),  # no larger than the field
    ],
)
def test_patches_follow_from_the_radius(
    radius: float, field: tuple[int, int], size: int, overlap: int
) -> None:
    proposal = propose_from_outline(circle(radius, field[0] / 2, field[1] / 2), field)
    assert proposal.cell_radius == pytest.approx(radius, abs=0.01)
    assert (proposal.patch_size, proposal.patch_overlap) == (size, overlap)
    assert proposal.stride == size
    assert proposal.source == "outline"


@pytest.mark.parametrize("radius", [1.6, 3.0, 5.2, 9.9, 18.0, 33.3, 60.0])
@pytest.mark.parametrize("field", [(130, 260), (512, 796), (1030, 700)])
def test_source_extraction_takes_the_proposal_as_it_is(
    radius: float, field: tuple[int, int]
) -> None:
    """The patches of the search, which has limits of its own, are those of the quilt."""
    proposal = propose_from_outline(circle(radius, 65, 65), field)
    parameters = SourceExtractionParameters.from_mapping(proposal.to_mapping())
    patches = cut(field, parameters.core(field), parameters.halo)
    tiles = quilt(field, proposal.patch_size, proposal.patch_overlap)
    expected = [[span.start for span in (*patch.core, *patch.halo)] for patch in patches]
    assert [[*(tile.core[0] + 0.5), *(tile.halo[0] + 0.5)] for tile in tiles] == expected
    assert len(tiles) == math.prod(proposal.n_patches)


def test_a_cell_at_the_border_may_be_drawn_beyond_it() -> None:
    assert propose_from_outline(circle(5, 0, 52), (37, 53)).cell_radius == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([(3, 4), (9, 9)], "the outline has 2 points; draw at least 3"),
        ([(3, 4), (9, 9), (15, 14)], "the outline has no area"),
        ([(3, 4)] * 5, "the outline has no area"),
        (circle(5, 20, 70), "around y 20, x 70 px, outside of the field of 37 x 53 px"),
        (circle(5, -3, 20), "around y -3, x 20 px, outside"),
        (circle(30, 18, 26), "disc of 30.0 px radius but the field is only 37 x 53 px"),
        (circle(1, 18, 26), "disc of 1.0 px radius, but cells must have 1.5 to 100 px"),
        ([(0, 3, 4), (0, 9, 9), (0, 9, 4)], r"the outline has the shape \(3, 3\)"),
        ([(3, 4), (9, np.nan), (9, 4)], "not finite"),
    ],
)
def test_an_outline_that_is_no_cell_is_refused(outline: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        propose_from_outline(outline, (37, 53))  # type: ignore[arg-type]


@pytest.mark.parametrize("pixel_size", [-0.5, math.nan, math.inf])
def test_a_pixel_has_a_size(pixel_size: float) -> None:
    with pytest.raises(InputError, match="pixel_size is"):
        propose_from_outline(circle(5, 18, 26), (37, 53), pixel_size)


# ----------------------------------------------------------------------------------- proposal


def test_lengths_in_micrometres() -> None:
    known = Proposal(5.0, 64, 20, (320, 256), 0.5, "image").in_um()
    assert known == {"cell_radius": 2.5, "patch_size": 32, "patch_overlap": 10, "stride": 32}
    assert all(math.isnan(v) for v in Proposal(5.0, 64, 20, (9, 9), 0.0, "image").in_um().values())


def test_the_text_names_what_is_proposed() -> None:
    many = Proposal(5.2, 64, 21, (320, 256), 0.0, "outline").text
    assert many == (
        "Cells of 5.2 px radius. Patches of 64 px every 64 px with 21 px around each, "
        "fitted to the field: 5 x 4 patches."
    )
    one = Proposal(5.0, 64, 20, (37, 53), 2.0, "outline").text
    assert one == (
        "Cells of 5.0 px (10.0 um) radius. One patch of up to 64 px (128 um): the whole field."
    )


# -------------------------------------------------------------------------------------- quilt


def test_cores_tile_the_field_and_halos_end_at_its_edges() -> None:
    """Areas of all cores add to the field; each halo is the core grown, clipped to the field."""
    tiles = quilt((37, 53), 20, 6)
    edges = np.array([36.5, 52.5])
    assert len(tiles) == 2 * 3
    area = 0.0
    for core, halo in tiles:
        assert core.shape == halo.shape == (4, 2)
        area += float(np.prod(core[2] - core[0]))
        np.testing.assert_array_equal(halo[0], np.maximum(core[0] - 6, -0.5))
        np.testing.assert_array_equal(halo[2], np.minimum(core[2] + 6, edges))
        np.testing.assert_array_equal(
            core[[1, 3]], [[core[0, 0], core[2, 1]], core[[2, 0], [0, 1]]]
        )
    assert area == 37 * 53
    np.testing.assert_array_equal(tiles[-1].core[2], edges)


# -------------------------------------------------------------------------------------- image


@pytest.mark.parametrize("radius", [3.0, 4.5, 6.0, 9.0, 13.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_radius_of_discs(radius: float, seed: int) -> None:
    """To 20 %: cells are not as full as discs, for which a sixth is taken off."""
    sharp = discs(radius, (144, 168), 3.4 * radius)  # crowded: their gaps are dark blobs
    noise = np.random.default_rng(seed).normal(size=sharp.shape)
    assert guess_radius(sharp + 0.3 * noise) == pytest.approx(0.84 * radius, rel=0.2)


def test_the_hole_of_a_nucleus_is_not_seen() -> None:
    rings = discs(8, (144, 168), 28) - 0.8 * discs(4.5, (144, 168), 28)
    noise = np.random.default_rng(3).normal(size=rings.shape)
    assert guess_radius(rings + 0.15 * noise) == pytest.approx(0.84 * 8, rel=0.2)


@cache
def simulated(radius: float, seed: int) -> NDArray[np.float32]:
    """Correlation image of still cells that cover a fifth of a field that has enough of them."""
    height, width = (96, 128) if radius < 7 else (144, 168)
    n_cells = round(0.19 * height * width / (np.pi * radius**2))
    parameters = SimulationParameters(
        height=height, width=width, n_frames=160, cell_radius=radius, n_cells=n_cells,
        n_out_of_focus=round(0.4 * n_cells), motion_rigid=0, motion_piecewise=0, seed=seed,
    )  # fmt: skip
    return images(simulate(parameters).movie)["correlation"]


@pytest.mark.parametrize(
    ("radius", "seed"), [(3, 1), (4, 2), (5, 3), (7, 1), (9, 2), (12, 1), (3, 11), (5, 12)]
)
def test_the_radius_of_simulated_cells(radius: float, seed: int) -> None:
    """Within 25 %, as a person's outline would be; irregular rings and blurred cells included."""
    assert guess_radius(simulated(radius, seed)) == pytest.approx(radius, rel=0.25)


def test_units_offset_and_flips_do_not_matter() -> None:
    image = simulated(5, 3)
    expected = guess_radius(image)
    # to 1 %: transforms round in float32
    assert guess_radius(3000 + 500 * image) == pytest.approx(expected, rel=0.01)
    assert guess_radius(image[::-1].T) == pytest.approx(expected, rel=0.01)


def test_nan_counts_as_nothing() -> None:
    image = simulated(5, 3).copy()
    image[:3] = np.nan
    assert guess_radius(image) == pytest.approx(guess_radius(simulated(5, 3)), rel=0.1)


def test_a_proposal_from_an_image() -> None:
    image = simulated(5, 3)
    proposal = propose_from_image(image, 0.8)
    assert proposal.cell_radius == pytest.approx(guess_radius(image), abs=0.005)
    assert (proposal.source, proposal.field, proposal.pixel_size) == ("image", FIELD, 0.8)
    assert proposal.patch_overlap == math.ceil(4 * guess_radius(image))


def test_the_middle_of_a_large_image_is_taken() -> None:
    image = np.random.default_rng(0).normal(size=(60, 2600))
    cells = discs(5, (60, 1024), 18)
    image[:, 788:1812] += 4 * cells
    assert guess_radius(image) == guess_radius(image[:, 788:1812])


@pytest.mark.parametrize("smoothness", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_has_no_cells(smoothness: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=FIELD)
    with pytest.raises(InputError, match=r"no cells stand out .* outline one cell"):
        guess_radius(ndimage.gaussian_filter(noise, smoothness))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_recording_of_noise_has_no_cells(seed: int) -> None:
    frames = np.random.default_rng(seed).poisson(12, (120, *FIELD)).astype(np.uint16)
    found = images(Movie(da.from_array(frames, chunks=(40, 96, 128)), 30.0))
    for name in ("correlation", "mean", "std"):
        with pytest.raises(InputError, match="no cells stand out"):
            propose_from_image(found[name])


@pytest.mark.parametrize(
    "image",
    [np.full((37, 53), 7.0), np.full((37, 53), np.nan), np.indices((37, 53))[0], np.eye(9)],
    ids=["constant", "nan", "ramp", "tiny"],
)
def test_nothing_has_no_cells(image: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="no cells stand out"):
        guess_radius(image)


def test_an_image_has_two_axes() -> None:
    with pytest.raises(ValueError, match="3 axes"):
        guess_radius(np.zeros((3, 37, 53)))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recording is not here")
def test_the_radius_of_real_cells() -> None:
    """Within 25 % of the hand-labelled cells' median, from the correlation and the mean image."""
    regions = json.loads((REAL / "regions.json").read_text())
    areas = [len(r["coordinates"] if isinstance(r, dict) else r) for r in regions]
    labelled = float(np.median(np.sqrt(np.array(areas) / np.pi)))
    frames = np.concatenate([tifffile.imread(REAL / f"part_{i}.tif") for i in (1, 2, 3)])
    found = images(Movie(da.from_array(frames, chunks=(100, -1, -1)), 7.0))
    assert guess_radius(found["correlation"]) == pytest.approx(labelled, rel=0.25)
    assert guess_radius(found["mean"]) == pytest.approx(labelled, rel=0.25)
