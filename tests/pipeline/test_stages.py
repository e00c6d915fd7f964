"""The table of stages: it is one, it fits the session, and nothing in it computes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from dask.base import is_dask_collection
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import interpn

from napari_calcium.errors import InputError
from napari_calcium.extraction.parameters import SourceExtractionParameters
from napari_calcium.io.overview import save_overview
from napari_calcium.io.recording import open_recording
from napari_calcium.io.session import VARIABLES, Session, frames_layout
from napari_calcium.io.shards import write_frames
from napari_calcium.motion.correction import apply_shifts
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run
from napari_calcium.pipeline.stages import (
    STAGES,
    Inputs,
    Stage,
    read_seeds,
    stage_named,
    stages_until,
)
from napari_calcium.simulation import Simulation, SimulationParameters, simulate
from napari_calcium.truth import Truth

ORDER = [
    "import",
    "motion_correction",
    "summary_images",
    "source_extraction",
    "component_evaluation",
    "dff",
    "spike_inference",
]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a stage computed or read frames while it was built")


@pytest.mark.parametrize("stage", STAGES, ids=ORDER)
def test_building_a_stage_computes_nothing(
    stage: Stage, finished: Path, tiff: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, recording = Session(finished), open_recording([tiff])
    monkeypatch.setattr(zarr.Array, "__getitem__", refuse)
    monkeypatch.setattr("napari_calcium.io.tiff.TiffFrames.__getitem__", refuse)
    with dask.config.set(scheduler=refuse):
        results = stage.build(Inputs(session, recording), recipe.parameters(stage.name))
        steps = [results]
        if results.then is not None:
            monkeypatch.undo()
            computed = session.shifts(), session.read("motion_correction/template")
            monkeypatch.setattr(zarr.Array, "__getitem__", refuse)
            steps.append(results.then(computed))
    for step in steps:
        parts = [part for part in (step.arrays, step.attrs, step.computed) if part is not None]
        assert [*step.movies, *parts]
        assert all(is_dask_collection(part) for part in (*step.movies.values(), *parts))


def test_the_scheduler_that_refuses_does(finished: Path) -> None:
    with dask.config.set(scheduler=refuse), pytest.raises(AssertionError, match="was built"):
        Session(finished).movie().frames.compute()


def test_the_stages_are_these_in_this_order() -> None:
    assert [stage.name for stage in STAGES] == ORDER
    assert len({stage.title for stage in STAGES}) == len({s.group for s in STAGES}) == len(STAGES)


def test_a_stage_needs_only_earlier_ones() -> None:
    for place, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(ORDER[:place]), stage.name
        assert stage.summary.endswith(".")


def test_the_groups_are_those_of_the_session() -> None:
    assert {stage.group for stage in STAGES} == {name.split("/")[0] for name in VARIABLES}


def test_the_stages_write_every_variable_and_nothing_else(
    finished: Path, contents: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    assert contents(finished).keys() == VARIABLES.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("import", ["import"]),
        ("summary_images", ["import", "motion_correction", "summary_images"]),
        ("dff", ["import", "motion_correction", "source_extraction", "dff"]),
        (
            "spike_inference",
            ["import", "motion_correction", "source_extraction", "dff", "spike_inference"],
        ),
    ],
)
def test_a_stage_comes_with_what_it_needs(name: str, expected: list[str]) -> None:
    assert [stage.name for stage in stages_until(name)] == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("motion_corection", "unknown stage 'motion_corection'; did you mean 'motion_correction'?"),
        ("spikes!", f"unknown stage 'spikes!'; known are {', '.join(ORDER)}"),
    ],
)
def test_an_unknown_stage_is_answered_with_the_nearest(name: str, said: str) -> None:
    for look_up in (stage_named, stages_until):
        with pytest.raises(InputError) as error:
            look_up(name)
        assert str(error.value) == said


MOVING = SimulationParameters(
    height=72, width=98, n_frames=140, frame_rate=10.0, n_cells=12, n_out_of_focus=0,
    motion_rigid=4.0, motion_piecewise=2.0, photons=40.0,
)  # fmt: skip
RATE = {"import": {"frame_rate": 10.0}}
PATCHES = {"patch_size": 40, "patch_overlap": 12}
Frames = NDArray[Any]
Correct = Callable[..., Session]


def imported(frames: Frames, folder: Path) -> Path:
    """Return a session that holds a movie and nothing else."""
    path = folder / "imported.zarr"
    names = ("time", "y", "x") if frames.ndim == 3 else ("time", "z", "y", "x")
    source = folder / "movie.zarr"
    zarr.create_array(source, data=frames, chunks=frames.shape, dimension_names=names)
    run(path, [source], recipe=Recipe(RATE), until="import")
    return path


def with_frames(path: Path, frames: Frames) -> None:
    """Put other frames in the place of a session's movie, also such as no recording may have."""
    session = Session(path)
    record = session.record("movie")
    assert record is not None
    with session.writing("movie") as writer:
        blocks = (frames_layout(frames.shape, 4)[1][0], *frames.shape[1:])
        movie = da.from_array(frames, chunks=blocks)
        target = writer.create_frames("frames", movie)
        for start in range(0, len(frames), blocks[0]):
            write_frames(target, start, frames[start : start + blocks[0]])
        writer.commit(record)


def correct(path: Path, **parameters: Any) -> Session:
    """Correct the motion of a session in place."""
    run(path, recipe=Recipe({**RATE, "motion_correction": parameters}), until="motion_correction")
    return Session(path)


def reran(path: Path, **parameters: Any) -> bool:
    """Correct the motion of a session again, and say whether there was anything to do."""
    recipe = Recipe({**RATE, "motion_correction": parameters})
    return not run(path, recipe=recipe, until="motion_correction").stages[-1].skipped


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(MOVING)


@pytest.fixture(scope="module")
def moving(simulation: Simulation) -> Frames:
    values: Frames = simulation.movie.frames.compute()
    return values


@pytest.fixture(scope="module")
def pristine(moving: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of the moving recording before its motion is corrected; not to be changed."""
    return imported(moving, tmp_path_factory.mktemp("moving"))


@pytest.fixture
def session_of_moving(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(pristine, tmp_path / "moving.zarr"))


def error(found: Frames, true: Frames) -> float:
    """Return the root mean square error of shifts (time, ..., axis) but for the place at rest."""
    wrong = found - true
    return float(np.sqrt(np.mean((wrong - np.median(wrong, axis=0)) ** 2)))


def true_shifts(truth: Truth, grid_y: Frames, grid_x: Frames) -> Frames:
    """Return the true shifts (time, grid_y, grid_x, 2) at other places."""
    places = np.stack(np.meshgrid(grid_y, grid_x, indexing="ij"), axis=-1)
    moved = [
        interpn((truth.grid_y, truth.grid_x), each, places, bounds_error=False, fill_value=None)
        for each in truth.shifts_piecewise
    ]
    return np.stack(moved)


class TestMethods:
    """The stage from the movie to its corrected frames, against the known motion."""

    def test_piecewise(self, session_of_moving: Path, simulation: Simulation) -> None:
        """0.06 px is measured; the deviations from the shifts of the frames are 0.3 px."""
        shifts = correct(session_of_moving, **PATCHES).shifts()
        assert shifts.piecewise is not None
        assert shifts.grid_y is not None
        assert shifts.grid_x is not None
        true = true_shifts(simulation.truth, shifts.grid_y, shifts.grid_x)
        assert error(shifts.rigid[:, None, None], true) > 0.25
        assert error(shifts.piecewise, true) < 0.12
        assert shifts.piecewise.shape == (140, *true.shape[1:3], 2)
        assert min(true.shape[1:3]) > 1

    def test_rigid(self, session_of_moving: Path, simulation: Simulation) -> None:
        session = correct(session_of_moving, method="rigid")
        assert session.shifts().piecewise is None
        assert "motion_correction/shifts_piecewise" not in session
        assert error(session.shifts().rigid, simulation.truth.shifts) < 0.4  # patches differ by 1.2
        assert not session.shifts().flagged.any()

    def test_none(self, session_of_moving: Path, moving: Frames) -> None:
        session = correct(session_of_moving, method="none")
        np.testing.assert_array_equal(session.read("motion_correction/frames"), moving)
        assert not session.shifts().rigid.any()
        attrs = session.group_attrs("motion_correction")
        for name in ("crispness", "residual_flow"):
            assert attrs[f"{name}_before"] == pytest.approx(attrs[f"{name}_after"], rel=1e-6)

    def test_the_measures_say_that_it_is_better(self, session_of_moving: Path) -> None:
        session = correct(session_of_moving, **PATCHES)
        attrs = session.group_attrs("motion_correction")
        assert attrs["crispness_after"] > 1.1 * attrs["crispness_before"]
        assert attrs["residual_flow_after"] < 0.5 * attrs["residual_flow_before"]
        for name in ("correlation", "principal_motion"):
            before, after = (
                session.read(f"motion_correction/{name}_{when}") for when in ("before", "after")
            )
            assert before.shape == after.shape
            better = after - before if name == "correlation" else before - after
            assert np.median(better) > 0
        assert session.read("motion_correction/correlation_after").shape == (140,)

    def test_a_template_from_all_frames(
        self, session_of_moving: Path, simulation: Simulation
    ) -> None:
        path = session_of_moving
        first = correct(path, **PATCHES).read("motion_correction/template")
        session = correct(path, **PATCHES, template_updates=1)
        shifts = session.shifts()
        assert np.abs(session.read("motion_correction/template") - first).max() > 0
        true = true_shifts(simulation.truth, shifts.grid_y, shifts.grid_x)  # type: ignore[arg-type]
        assert error(shifts.piecewise, true) < 0.15  # type: ignore[arg-type]

    @pytest.mark.parametrize("parameters", [{}, {"method": "rigid"}, {"borders": "crop"}])
    def test_workers_and_chunks_do_not_matter(
        self,
        parameters: dict[str, Any],
        session_of_moving: Path,
        moving: Frames,
        tmp_path: Path,
        assert_identical: Callable[[Path, Path], None],
    ) -> None:
        recipe = Recipe({**RATE, "motion_correction": {**PATCHES, **parameters}})
        for workers in (1, 2):
            path = tmp_path / f"{workers}.zarr"
            source = tmp_path / f"movie_{workers}.zarr"
            chunks = (7, 72, 30) if workers == 1 else (140, 11, 98)
            zarr.create_array(source, data=moving, chunks=chunks)
            run(path, [source], recipe=recipe, until="motion_correction", workers=workers)
        assert_identical(tmp_path / "1.zarr", tmp_path / "2.zarr")
        one, two = (
            Session(tmp_path / f"{workers}.zarr").group_attrs("motion_correction")
            for workers in (1, 2)
        )
        measures = [name for name in one if name.endswith(("_before", "_after"))]
        assert len(measures) == 4
        assert {name: one[name] for name in measures} == {name: two[name] for name in measures}


class TestBorders:
    """What comes in from outside, or is cut off."""

    @pytest.mark.parametrize("method", ["rigid", "piecewise"])
    @pytest.mark.parametrize("borders", ["nearest", "minimum", "crop"])
    def test_the_lazy_movie_is_the_stored_one(
        self, borders: str, method: str, session_of_moving: Path
    ) -> None:
        session = correct(session_of_moving, **PATCHES, borders=borders, method=method)
        stored = session.read("motion_correction/frames")
        lazy = apply_shifts(session.movie(), session.shifts(), borders)  # type: ignore[arg-type]
        np.testing.assert_array_equal(lazy.frames.compute(), stored)
        assert stored.dtype == np.uint16

    def test_crop_is_what_every_frame_saw(
        self, session_of_moving: Path, simulation: Simulation
    ) -> None:
        nearest = correct(session_of_moving, **PATCHES).read("motion_correction/frames")
        session = correct(session_of_moving, **PATCHES, borders="crop")
        (y0, y1), (x0, x1) = session.group_attrs("motion_correction")["valid_region"]
        frames = session.read("motion_correction/frames")
        assert frames.shape == (140, y1 - y0, x1 - x0)
        np.testing.assert_array_equal(frames, nearest[:, y0:y1, x0:x1])
        lost = np.ptp(simulation.truth.shifts_piecewise, axis=(0, 1, 2))
        np.testing.assert_allclose((72 - (y1 - y0), 98 - (x1 - x0)), lost, atol=2.5)
        assert session.read("motion_correction/template").shape == (72, 98)

    def test_minimum_differs_at_the_borders_only(self, session_of_moving: Path) -> None:
        nearest = correct(session_of_moving, **PATCHES).read("motion_correction/frames")
        session = correct(session_of_moving, **PATCHES, borders="minimum")
        (y0, y1), (x0, x1) = session.group_attrs("motion_correction")["valid_region"]
        frames = session.read("motion_correction/frames")
        assert (frames != nearest).any()
        np.testing.assert_array_equal(frames[:, y0:y1, x0:x1], nearest[:, y0:y1, x0:x1])

    def test_a_smaller_field_may_take_longer_shards(
        self, tiff: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """37 x 53 px are above the limit for 128 frames, the crop is below it."""
        monkeypatch.setattr("napari_calcium.io.session.SHARD_BYTES", 128 * 37 * 53 * 2 - 2)
        cropped = recipe.with_value("motion_correction.borders", "crop")
        run(tmp_path / "s.zarr", [tiff], recipe=cropped, until="motion_correction")
        session = Session(tmp_path / "s.zarr")
        stored = session.array("motion_correction/frames")
        assert session.array("movie/frames").shards == (64, 37, 53)
        assert stored.shards == (128, *stored.shape[1:])
        lazy = apply_shifts(session.movie(), session.shifts(), "crop").frames
        np.testing.assert_array_equal(stored[...], lazy.compute())

    def test_all_stages_run_on_a_cropped_movie(
        self, tiff: Path, recipe: Recipe, finished: Path, tmp_path: Path
    ) -> None:
        cropped = recipe.with_value("motion_correction.borders", "crop")
        path = tmp_path / "s.zarr"
        run(path, [tiff], recipe=cropped)
        session = Session(path)
        field = session.array("motion_correction/frames").shape[1:]
        assert field[0] < 37
        assert field[1] < 53
        assert session.components().shape == field
        assert session.read("summary_images/mean").shape == field
        assert session.components().n_cells > 0
        assert session.array("dff/traces").shape[1] == 300
        save_overview(session, tmp_path / "overview.png")

    def test_a_crop_that_leaves_no_room_for_a_cell_is_said(
        self, tiff: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cropped = recipe.with_value("motion_correction.borders", "crop")
        path = tmp_path / "s.zarr"
        run(path, [tiff], recipe=cropped, until="motion_correction")
        height, width = Session(path).array("motion_correction/frames").shape[1:]
        largest = cropped.with_value("source_extraction.cell_radius", (height + 1) / 2)
        with pytest.raises(InputError, match=rf"cell_radius is .* only {height} x {width} px"):
            run(path, recipe=largest)
        assert Session(path).record("motion_correction") is not None


class TestTemplateFile:
    """A template from elsewhere."""

    @pytest.fixture
    def image(self, simulation: Simulation, tmp_path: Path) -> Path:
        np.save(tmp_path / "template.npy", simulation.truth.template)
        return tmp_path / "template.npy"

    @pytest.mark.parametrize("kind", [".npy", ".tif"])
    def test_frames_are_laid_over_it(
        self, kind: str, image: Path, session_of_moving: Path, simulation: Simulation
    ) -> None:
        """Where the field lies at rest is known then: no constant is taken off the error."""
        path = image.with_suffix(kind)
        if kind == ".tif":
            tifffile.imwrite(path, np.load(image))
        session = correct(session_of_moving, method="rigid", template_file=str(path))
        stored = session.read("motion_correction/template")
        np.testing.assert_array_equal(stored, simulation.truth.template)
        wrong = session.shifts().rigid - simulation.truth.shifts
        assert np.abs(np.median(wrong, axis=0)).max() < 0.15
        assert np.sqrt(np.mean(wrong**2)) < 0.4

    def test_its_content_counts(self, image: Path, session_of_moving: Path) -> None:
        path = session_of_moving
        asked = {"method": "rigid", "template_file": str(image)}
        assert reran(path, **asked)
        assert not reran(path, **asked)
        values = np.load(image)
        np.save(image, values)  # another date, the same content
        assert not reran(path, **asked)
        np.save(image, np.roll(values, 2, axis=1))
        assert reran(path, **asked)
        Session(path).current("motion_correction")
        assert reran(path, method="rigid")

    def test_once_read_it_is_not_needed_any_more(
        self, image: Path, session_of_moving: Path
    ) -> None:
        asked = {"method": "rigid", "template_file": str(image)}
        assert reran(session_of_moving, **asked)
        image.unlink()
        assert not reran(session_of_moving, **asked)
        with pytest.raises(InputError, match="there is no such file; check the path"):
            reran(session_of_moving, **asked, max_shift=9)
        assert Session(session_of_moving).record("motion_correction") is not None

    def test_a_missing_one_is_said_before_anything_is_read(
        self, tiff: Path, tmp_path: Path
    ) -> None:
        missing = {"template_file": str(tmp_path / "none.tif")}
        recipe = Recipe({**RATE, "motion_correction": missing})
        with pytest.raises(InputError) as said:
            run(tmp_path / "s.zarr", [tiff], recipe=recipe)
        assert str(said.value) == (
            f"motion_correction is to read {missing['template_file']!r} but there is no such file; "
            "check the path"
        )
        assert not (tmp_path / "s.zarr").exists()

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (np.ones((37, 53)), r"template is 37 x 53 px but the field is 72 x 98 px; give a"),
            (np.ones((3, 72, 98)), r"template is 3 x 72 x 98 px but the field is 72 x 98 px"),
            (np.full((72, 98), 3.0), r"template is the same everywhere; give an image of the"),
            (np.ones(72), r"has the shape \(72,\); give one image \(y, x\) or one volume"),
        ],
    )
    def test_one_that_does_not_fit(
        self, values: Frames, said: str, session_of_moving: Path, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "t.npy", values)
        with pytest.raises(InputError, match=said):
            correct(session_of_moving, template_file=str(tmp_path / "t.npy"))
        session = Session(session_of_moving)
        assert session.record("movie") is not None
        assert session.record("motion_correction") is None


class TestBadFrames:
    """Frames that show nothing are told, and harm nothing."""

    @pytest.mark.parametrize("method", ["rigid", "piecewise"])
    def test_blank_and_saturated_frames(
        self, method: str, session_of_moving: Path, moving: Frames
    ) -> None:
        frames = moving.copy()
        bad = [0, 17, 18, 60, 139]
        frames[[0, 17]] = 0
        frames[18] = 65535
        frames[60] = np.where(np.arange(72)[:, None] < 30, 65535, frames[60])
        frames[139] = 7
        good = correct(session_of_moving, method=method, **PATCHES).shifts()
        with_frames(session_of_moving, frames)
        session = correct(session_of_moving, method=method, **PATCHES, max_shift=14)
        shifts = session.shifts()
        assert np.flatnonzero(shifts.flagged).tolist() == bad  # type: ignore[arg-type]
        assert np.isfinite(shifts.rigid).all()
        others = np.setdiff1d(np.arange(140), bad)
        assert error(shifts.rigid[others], good.rigid[others]) < 0.05
        low, high = np.sort(shifts.rigid[[16, 19]], axis=0)
        assert ((low <= shifts.rigid[17]) & (shifts.rigid[17] <= high)).all()
        corrected = session.read("motion_correction/frames")
        for frame, value in ((0, 0), (17, 0), (18, 65535), (139, 7)):
            assert (corrected[frame] == value).all()
        assert np.isfinite(session.read("motion_correction/correlation_after")).all()

    def test_pixels_that_are_no_numbers(self, session_of_moving: Path, moving: Frames) -> None:
        frames = moving.astype(np.float32)
        frames[5] = np.nan
        frames[70, 20:30, 40:60] = np.nan
        frames[71, 3, 4] = np.inf
        with_frames(session_of_moving, frames)
        session = correct(session_of_moving, **PATCHES)
        shifts = session.shifts()
        assert np.flatnonzero(shifts.flagged).tolist() == [5]  # type: ignore[arg-type]
        for name in ("shifts_rigid", "shifts_piecewise", "template", "correlation_after"):
            assert np.isfinite(session.read(f"motion_correction/{name}")).all(), name
        corrected = session.read("motion_correction/frames")
        assert corrected.dtype == np.float32
        assert np.isnan(corrected[5]).all()
        assert 150 < np.isnan(corrected[70]).sum() < 500
        assert np.isfinite(np.delete(corrected, [5, 70, 71], axis=0)).all()

    def test_nothing_but_blank_frames(self, session_of_moving: Path, moving: Frames) -> None:
        frames = np.empty_like(moving) + np.arange(140, dtype=np.uint16)[:, None, None]
        frames[:] = np.arange(140, dtype=np.uint16)[:, None, None]
        with_frames(session_of_moving, frames)
        with pytest.raises(InputError, match=r"all \d+ frames .*blank, saturated .*set method"):
            correct(session_of_moving)
        np.testing.assert_array_equal(Session(session_of_moving).read("movie/frames"), frames)
        assert Session(session_of_moving).record("motion_correction") is None


class TestRefusal:
    """What cannot be corrected is said in a sentence, and the movie is kept."""

    @pytest.mark.parametrize("method", ["rigid", "piecewise"])
    def test_too_few_frames(self, method: str, moving: Frames, tmp_path: Path) -> None:
        path = imported(moving[:9], tmp_path)
        with pytest.raises(InputError) as said:
            correct(path, method=method)
        assert str(said.value) == (
            "the movie has 9 frames but a template is made from at least 10; "
            "give a template or set method to none"
        )
        np.testing.assert_array_equal(Session(path).read("movie/frames"), moving[:9])

    def test_few_frames_have_a_template_from_elsewhere_or_none(
        self, moving: Frames, simulation: Simulation, tmp_path: Path
    ) -> None:
        path = imported(moving[:9], tmp_path)
        np.save(tmp_path / "t.npy", simulation.truth.template)
        session = correct(path, template_file=str(tmp_path / "t.npy"), **PATCHES)
        assert error(session.shifts().rigid, simulation.truth.shifts[:9]) < 0.4
        session = correct(path, method="none")
        assert "residual_flow_after" not in session.group_attrs("motion_correction")  # too few
        np.testing.assert_array_equal(session.read("motion_correction/frames"), moving[:9])

    def test_too_large_a_shift(self, session_of_moving: Path) -> None:
        with pytest.raises(InputError) as said:
            correct(session_of_moving, max_shift=37)
        assert str(said.value) == (
            "motion_correction.max_shift is 37 px but the field is 72 x 98 px; "
            "set max_shift to at most 36 px"
        )

    def test_patches_that_overlap_whole(self, session_of_moving: Path) -> None:
        with pytest.raises(InputError, match=r"motion_correction\.patch_overlap is 64 px; it must"):
            correct(session_of_moving, patch_size=64, patch_overlap=64)


@pytest.fixture(scope="module")
def places() -> Frames:
    """Where the scene of the volumes lies, (time, 3), planes and px."""
    reach = np.array([1.2, 4.0, 4.0])
    return np.random.default_rng(1).uniform(-reach, reach, (60, 3))


@pytest.fixture(scope="module")
def volumes(places: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of volumes out of a larger scene that moves, so nothing wraps."""
    field, margin = (5, 41, 57), (4, 12, 12)
    rng = np.random.default_rng(0)
    larger = [n + 2 * m for n, m in zip(field, margin, strict=True)]
    texture = ndimage.gaussian_filter(rng.normal(size=larger), (1.0, 2.0, 2.0))
    scene = np.exp(0.7 * texture / texture.std())
    inside = tuple(slice(m, m + n) for n, m in zip(field, margin, strict=True))
    frames = np.stack([ndimage.shift(scene, place, order=3)[inside] for place in places])
    photons = rng.poisson(60 * frames.clip(0) / scene.mean()).astype(np.uint16)
    return imported(photons, tmp_path_factory.mktemp("volumes"))


class TestVolumes:
    """Volumes that move along z, y and x."""

    @pytest.mark.parametrize("borders", ["nearest", "crop"])
    @pytest.mark.parametrize("method", ["rigid", "piecewise"])
    def test_their_motion_is_found(
        self, method: str, borders: str, volumes: Path, places: Frames, tmp_path: Path
    ) -> None:
        """0.06 px and planes are measured, 0.15 px for patches of one plane."""
        own = Path(shutil.copytree(volumes, tmp_path / "s.zarr"))
        patches = {"patch_size": 32, "patch_overlap": 10}
        session = correct(own, method=method, borders=borders, max_shift=8, **patches)
        shifts = session.shifts()
        assert shifts.field == (5, 41, 57)
        assert error(shifts.rigid, -places) < 0.12
        if method == "piecewise":
            assert shifts.piecewise is not None
            assert shifts.piecewise.shape == (60, 5, 2, 3, 2)
            assert error(shifts.piecewise, -places[:, None, None, None, 1:]) < 0.25
        stored = session.read("motion_correction/frames")
        lazy = apply_shifts(session.movie(), shifts, borders)  # type: ignore[arg-type]
        np.testing.assert_array_equal(lazy.frames.compute(), stored)
        (y0, y1), (x0, x1) = session.group_attrs("motion_correction")["valid_region"]
        size = (y1 - y0, x1 - x0) if borders == "crop" else (41, 57)
        assert stored.shape == (60, 5, *size)
        inner = stored[:, 2, 8:-8, 8:-8].astype(float)
        before = session.read("movie/frames")[:, 2, 8:-8, 8:-8].astype(float)
        assert inner.var(axis=0).mean() < 0.5 * before.var(axis=0).mean()


class TestSeeds:
    """Where the cells are, by a file."""

    def parameters(self, path: Path) -> SourceExtractionParameters:
        values = {"initialization": "seeds", "seeds_file": str(path), "seeds_kind": "structure"}
        return SourceExtractionParameters.from_mapping(values)

    def test_bodies_in_a_structural_channel(self, tmp_path: Path) -> None:
        """Three bright discs, and one of a third of the radius that is none."""
        y, x = np.mgrid[:37, :53]
        image = np.full((37, 53), 100.0)
        for place, radius in (((9, 10), 5), ((25, 30), 5), ((12, 42), 6), ((31, 8), 1.5)):
            image += 200 / (1 + np.exp(3 * (np.hypot(y - place[0], x - place[1]) - radius)))
        image += np.random.default_rng(0).normal(0, 5, image.shape)
        np.save(tmp_path / "red.npy", image.astype(np.float32))
        regions = read_seeds(self.parameters(tmp_path / "red.npy"), (37, 53))
        assert regions is not None
        assert regions.shape == (37 * 53, 3)
        for place in ((9, 10), (25, 30), (12, 42)):
            assert regions.toarray()[place[0] * 53 + place[1]].sum() == 1

    def test_none_without_seeds(self) -> None:
        assert read_seeds(SourceExtractionParameters(), (37, 53)) is None

    def test_of_another_field(self, tmp_path: Path) -> None:
        np.save(tmp_path / "red.npy", np.zeros((53, 37)))
        with pytest.raises(InputError, match=r"shape \(53, 37\) but the field is 37 x 53 px"):
            read_seeds(self.parameters(tmp_path / "red.npy"), (37, 53))

    def test_nothing_in_the_channel(self, tmp_path: Path) -> None:
        np.save(tmp_path / "red.npy", np.full((37, 53), 7.0))
        with pytest.raises(InputError, match="no body of 5 px radius in it"):
            read_seeds(self.parameters(tmp_path / "red.npy"), (37, 53))
