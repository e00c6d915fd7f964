"""The card of a cell: what is cut from where, what is written, and reading beside the window."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from qtpy.QtCore import QObject, Signal

from napari_calcium.components import Quality
from napari_calcium.evaluation.decision import decide
from napari_calcium.evaluation.evaluation import ComponentEvaluationParameters
from napari_calcium.io.session import Session
from napari_calcium.napari import cell_card
from napari_calcium.napari.cell_card import (
    HINT,
    NO_PIXELS,
    NOT_EVALUATED,
    READING,
    CellCard,
    CellSource,
    cell_images,
    read_source,
)
from napari_calcium.napari.decided import COLOURS, Decided, read_decided
from napari_calcium.napari.layers import KEY

FIELD = (37, 53)
PLACES = [(18, 26), (0, 0), (36, 52), (2, 50), (33, 3)]


def discs(radius: float = 4.0, places: Any = PLACES) -> sp.csc_array:
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    found = [np.hypot(y - cy, x - cx) < radius for cy, cx in places]
    weights = np.stack([(each / np.hypot(y - 40, x - 60)).ravel() for each in found], axis=1)
    return sp.csc_array(np.float32(weights))


def source(footprints: sp.csc_array | None = None, **others: Any) -> CellSource:
    footprints = discs() if footprints is None else footprints
    cell_id = 10 * np.arange(footprints.shape[1]) + 3
    return CellSource(footprints, FIELD, cell_id, 4.0, **others)


def decided(n: int = 5, **scores: Any) -> Decided:
    given = {
        "snr": np.linspace(0.1, 6, n),
        "spatial_correlation": np.linspace(0.95, 0.5, n),
        "cnn_probability": np.full(n, np.nan),
        "size": np.full(n, 1.0),
        "accepted": np.zeros(n, bool),
    }
    parameters = ComponentEvaluationParameters()
    quality = decide(Quality(**(given | scores)), parameters)
    return Decided(quality, parameters, 10 * np.arange(n) + 3, scores="digest", cells="digest")


# --------------------------------------------------------------------------------- images


@pytest.mark.parametrize("index", range(len(PLACES)))
def test_crops_are_of_the_same_square_whatever_the_border(index: int) -> None:
    """Against crops of whole images with a border of NaN."""
    rng = np.random.default_rng(index)
    mean = rng.random(FIELD).astype(np.float32)
    footprints = discs()
    known = discs(6.0)
    triggered = sp.csc_array(
        (rng.normal(size=known.nnz).astype(np.float32), known.indices, known.indptr),
        shape=known.shape,
    )
    images = cell_images(source(footprints, mean=mean, triggered=triggered), 10 * index + 3)
    assert images is not None
    side = images.footprint.shape[0]
    assert images.footprint.shape == (side, side)
    assert side >= 4 * 4.0
    dense = footprints[:, [index]].toarray().reshape(FIELD)
    rows, columns = np.nonzero(dense)
    # the square is centred on the box, so a square that far into the border is the same one
    centre = [(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    image = np.full(FIELD, np.nan, np.float32)
    image.ravel()[triggered[:, [index]].tocoo().coords[0]] = triggered[:, [index]].tocoo().data
    for found, whole in ((images.mean, mean), (images.footprint, dense), (images.triggered, image)):
        wide = np.pad(whole, side, constant_values=np.nan)
        first, last = (c + side - side // 2 for c in centre)
        np.testing.assert_array_equal(found, wide[first : first + side, last : last + side])
    assert np.nansum(images.footprint) == pytest.approx(dense.sum())


def test_the_outline_is_around_the_footprint() -> None:
    images = cell_images(source(), 3)
    assert images is not None
    (outline,) = images.outline
    weights = np.nan_to_num(images.footprint)
    places = np.argwhere(weights > 0.5 * weights.max())
    distance = np.hypot(*(outline - places.mean(axis=0)).T)
    assert distance.min() > 3  # a disc of 4 px, drawn between pixels
    assert distance.max() < 4.5


def test_a_large_cell_is_seen_whole_with_a_margin() -> None:
    large = discs(12.0, PLACES[:1])
    images = cell_images(source(large), 3)
    assert images is not None
    rows, columns = np.nonzero(np.nan_to_num(images.footprint))
    for places in (rows, columns):
        assert places.min() >= 4
        assert places.max() <= images.footprint.shape[0] - 5


def test_cells_that_are_not_there_or_have_no_pixels() -> None:
    footprints = sp.csc_array(np.zeros((FIELD[0] * FIELD[1], 2), np.float32))
    assert cell_images(source(footprints), 3) is None
    assert cell_images(source(), 4) is None
    assert cell_images(source(), None) is None


def test_what_is_not_known_is_none() -> None:
    images = cell_images(source(), 3)
    assert images is not None
    assert images.mean is images.triggered is None


# --------------------------------------------------------------------------------- reading


def test_it_reads_what_the_session_holds(session: Session) -> None:
    found = read_source(str(session.path))
    assert found is not None
    np.testing.assert_array_equal(found.mean, session.read("summary_images/mean"))
    np.testing.assert_array_equal(found.cell_id, session.read("source_extraction/cell_id"))
    assert (found.footprints != session.footprints()).nnz == 0
    assert found.triggered is not None
    assert found.triggered.shape == found.footprints.shape
    assert found.radius == 4.0
    for row, cell_id in enumerate(found.cell_id):
        images = cell_images(found, int(cell_id))
        assert images is not None
        assert images.triggered is not None
        known = np.isfinite(images.triggered)
        r = np.corrcoef(images.triggered[known], images.footprint[known])[0, 1]
        # the score is of the support alone, without the ring around it
        assert r == pytest.approx(session.quality().spatial_correlation[row], abs=0.15)


def test_it_reads_sessions_that_are_not_finished(finished: Path, tmp_path: Path) -> None:
    assert read_source(str(tmp_path / "none.zarr")) is None
    path = Path(shutil.copytree(finished, tmp_path / "s.zarr"))
    shutil.rmtree(path / "component_evaluation")
    shutil.rmtree(path / "summary_images")
    found = read_source(str(path))
    assert found is not None
    assert found.mean is found.triggered is None
    shutil.rmtree(path / "source_extraction")
    assert read_source(str(path)) is None


# ------------------------------------------------------------------------------- the card


class Threads(QObject):  # type: ignore[misc]
    """Reads in a thread, as a viewer's runner does."""

    ended = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(1)

    def read(self, function: Any, *arguments: Any) -> Any:
        return self._threads.submit(function, *arguments)


@pytest.fixture
def card(qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> CellCard:
    threads = Threads()
    monkeypatch.setattr(cell_card, "runner_of", lambda viewer: threads)
    widget = CellCard(None)
    qtbot.addWidget(widget)
    widget.show()
    return widget


@pytest.fixture
def layer(finished: Path) -> Any:
    """A layer of cells, as far as the card looks at it."""
    about = {"session": str(finished), "digest": "a digest"}
    return SimpleNamespace(metadata={KEY: about}, features={})


def waited(qtbot: Any, card: CellCard) -> CellCard:
    qtbot.waitUntil(lambda: not card.reading, timeout=10_000)
    return card


def test_a_cell_is_shown(qtbot: Any, card: CellCard, layer: Any, session: Session) -> None:
    assert card.text == HINT
    found = read_decided(session)
    for row, cell_id in enumerate(session.read("source_extraction/cell_id")):
        card.show_cell(layer, int(cell_id), found)
        waited(qtbot, card)
        images = cell_images(read_source(str(session.path)), int(cell_id))
        for name, view in card.views.items():
            np.testing.assert_array_equal(view.pixels, getattr(images, name))
            assert view.isVisible()
        assert f"Cell {cell_id}, {found.why(row)}" in card.text
        r = session.quality().spatial_correlation[row]
        assert f"correlation of these two: {r:.2f}" in card.text
        colour = COLOURS[bool(found.accepted[row]), False]
        assert {view._colour for view in card.views.values()} == {colour}
        assert HINT not in card.text


def test_images_and_outline_are_drawn(
    qtbot: Any, card: CellCard, layer: Any, session: Session
) -> None:
    card.resize(600, 400)
    card.show_cell(layer, int(session.read("source_extraction/cell_id")[0]))
    waited(qtbot, card)
    view = card.views["footprint"]
    view.set_colour("#ff0000")
    drawn = view.grab().toImage()
    side, colours = min(drawn.width(), drawn.height()), []
    left, top = (drawn.width() - side) // 2, (drawn.height() - side) // 2
    for step in range(1, side - 1):  # across the middle, where the cell is
        colours.append(drawn.pixelColor(left + step, top + side // 2).getRgb()[:3])
    red = [n for n, (r, g, b) in enumerate(colours) if r > 100 and g < 60 and b < 60]
    bright = [n for n, (r, g, b) in enumerate(colours) if min(r, g, b) > 200]
    assert red
    assert bright
    assert min(red) < min(bright) < max(bright) < max(red)


def test_only_the_newest_is_shown_and_the_window_does_not_wait(
    qtbot: Any, card: CellCard, layer: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, calls = threading.Event(), []

    def slow(path: str) -> CellSource | None:
        calls.append(path)
        assert go.wait(10)
        return read_source(path)

    monkeypatch.setattr(cell_card, "read_source", slow)
    ids = [int(cell_id) for cell_id in session.read("source_extraction/cell_id")[:3]]
    begin = time.perf_counter()
    for cell_id in ids:
        card.show_cell(layer, cell_id, read_decided(session))
    assert time.perf_counter() - begin < 1  # of 10 s of reading; 30 ms each are aimed at
    assert READING in card.text
    assert f"Cell {ids[-1]}," in card.text
    go.set()
    waited(qtbot, card)
    assert len(calls) == 1
    images = cell_images(read_source(str(session.path)), ids[-1])
    np.testing.assert_array_equal(card.views["footprint"].pixels, images.footprint)
    card.show_cell(layer, ids[0])  # by now nothing has to be read
    assert not card.reading
    images = cell_images(read_source(str(session.path)), ids[0])
    np.testing.assert_array_equal(card.views["footprint"].pixels, images.footprint)


def test_no_cell_while_images_are_read(
    qtbot: Any, card: CellCard, layer: Any, session: Session
) -> None:
    card.show_cell(layer, int(session.read("source_extraction/cell_id")[0]))
    card.show_cell(None, None)
    assert card.text == HINT
    waited(qtbot, card)
    assert card.text == HINT
    assert card._pictures.isHidden()


def test_after_a_run_the_images_are_read_again(
    qtbot: Any, card: CellCard, layer: Any, session: Session
) -> None:
    card.show_cell(layer, int(session.read("source_extraction/cell_id")[0]))
    waited(qtbot, card)
    card._runner.ended.emit({"state": "done", "preview": {}})
    assert not card.reading
    card._runner.ended.emit({"state": "done", "stages": []})
    assert card.reading
    waited(qtbot, card)


def put(card: CellCard, cells: CellSource | None, cell_id: int, **others: Any) -> None:
    """Show a cell of a source that was read, as it were."""
    metadata = {KEY: {"session": "s.zarr", "digest": "a digest"}}
    layer = SimpleNamespace(metadata=metadata, features={})
    card._layer, card.cell_id = layer, cell_id
    card._source = card._wanted, cells
    card.show_cell(layer, cell_id, **others)


def test_a_cell_without_pixels_says_so(card: CellCard) -> None:
    empty = sp.csc_array(np.zeros((FIELD[0] * FIELD[1], 5), np.float32))
    put(card, source(empty), 13, decided=decided())
    assert card.text.startswith(NO_PIXELS)
    assert "Cell 13, " in card.text
    assert card._pictures.isHidden()


def test_without_evaluation_it_says_what_to_do(card: CellCard) -> None:
    put(card, source(), 13)
    assert card.text == f"Cell 13. {NOT_EVALUATED}."
    assert card.views["footprint"].pixels is not None
    assert card.views["mean"].pixels is None
    assert card.views["mean"]._missing
    assert card.views["triggered"]._missing
    card.grab()


def test_scores_say_which_thresholds_they_reach(card: CellCard) -> None:
    given = decided(size=np.array([0.2, 1, 5, 1, 1]), snr=np.array([3, 1, np.nan, 0.5, 6]))
    parameters = replace(given.parameters, correlation_lower=0.6, correlation_upper=0.9)
    put(card, source(), 3, decided=given.by(parameters))
    for said in ("reaches 2.5", "reaches 0.9", "not asked", "below 0.3"):
        assert said in card.text
    card.show_cell(card._layer, 13, given.by(parameters))
    for said in ("between 0.5 and 2.5", "between 0.6 and 0.9", "between 0.3 and 4"):
        assert said in card.text
    card.show_cell(card._layer, 23, given.by(parameters))
    assert "not known" in card.text
    assert "above 4" in card.text
    card.show_cell(card._layer, 33, given.by(parameters))
    assert "not above 0.5" in card.text


def test_cells_that_overlap_are_named_the_largest_first(card: CellCard) -> None:
    pairs, overlap = np.array([[0, 1], [1, 4], [2, 3]]), np.float32([0.25, 0.6, 0.9])
    put(card, source(), 13, decided=decided(pairs=pairs, overlap=overlap))
    assert "Overlaps cell 43 (60 %), cell 3 (25 %)" in card.text
    card.show_cell(card._layer, 3, decided())
    assert "Overlaps" not in card.text


def test_what_a_person_chose_is_said_and_seen(card: CellCard) -> None:
    put(card, source(), 43, decided=decided())
    before = card.text
    chosen = replace(decided(), choices={43: False})
    card.show_decided(chosen)
    assert "rejected by hand" in card.text
    assert "by hand" not in before
    assert card.views["mean"]._colour == COLOURS[False, True]
    card.show_decided(None)
    assert NOT_EVALUATED in card.text


def test_a_cell_that_was_not_decided_has_no_scores(card: CellCard) -> None:
    put(card, source(), 43, decided=decided(n=2))
    assert card.text == ""


@pytest.mark.parametrize(
    ("level", "marks", "expected"),
    [
        (1.2345, "", "Noise level of dF/F 1.23 % Hz^-0.5; spike rate: nothing against it"),
        (9.0, "too noisy", "Noise level of dF/F 9 % Hz^-0.5; spike rate: too noisy"),
        (
            np.nan,
            "too short or constant",
            "Noise level of dF/F not known; spike rate: too short or constant",
        ),
    ],
)
def test_noise_and_what_speaks_against_the_rate_are_said(
    card: CellCard, level: float, marks: str, expected: str
) -> None:
    put(card, source(), 13, decided=decided())
    assert "Noise level" not in card.text
    table = {"cell_id": [3, 13], "noise_level": [4.0, level], "spike_marks": ["smoothed", marks]}
    card._layer.features = pd.DataFrame(table)
    card.show_cell(card._layer, 13, decided())
    assert card.text.endswith("\n" + expected)
    card.show_cell(card._layer, 43, decided())
    assert "Noise level" not in card.text
