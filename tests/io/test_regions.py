"""Regions from files: which pixels they are, and what is said of files that hold none."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import tifffile
import zarr
from numpy.typing import NDArray
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite

from napari_calcium.errors import InputError
from napari_calcium.footprints import outlines
from napari_calcium.io.regions import (
    read_regions,
    regions_from_labels,
    regions_from_outlines,
    write_regions,
)
from napari_calcium.io.session import Session

FIELD = (37, 53)
ROWS, COLUMNS = np.mgrid[: FIELD[0], : FIELD[1]]


def images(regions: sp.csc_array) -> NDArray[np.bool_]:
    assert regions.format == "csc"
    assert regions.dtype == np.float32
    assert (regions.data == 1).all()
    assert regions.has_canonical_format
    return regions.toarray().T.reshape(-1, *FIELD) > 0


def box(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    inside = np.zeros(FIELD, bool)
    inside[top:bottom, left:right] = True
    return inside


def rectangle(left: int, top: int, width: int, height: int, **more: object) -> ImagejRoi:
    return ImagejRoi(
        roitype=ROI_TYPE.RECT, left=left, top=top, right=left + width, bottom=top + height, **more
    )


def drawn(points: object, roitype: ROI_TYPE, name: str = "cell") -> ImagejRoi:
    """A ROI of points (x, y) from the corner."""
    roi = ImagejRoi.frompoints(np.asarray(points), name=name)
    roi.roitype = roitype
    return roi


# ------------------------------------------------------------------------------------ ImageJ ROIs


def test_a_rectangle_is_its_pixels(tmp_path: Path) -> None:
    rectangle(2, 3, 4, 5).tofile(tmp_path / "cell.roi")
    found = images(read_regions(tmp_path / "cell.roi", FIELD))
    np.testing.assert_array_equal(found, [box(3, 2, 8, 6)])


def test_a_rectangle_between_pixels_has_those_whose_centres_it_holds(tmp_path: Path) -> None:
    roi = rectangle(2, 3, 4, 5, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION)
    roi.xd, roi.yd, roi.widthd, roi.heightd = 2.6, 3.4, 4.0, 5.0
    roi.tofile(tmp_path / "cell.roi")
    found = images(read_regions(tmp_path / "cell.roi", FIELD))
    np.testing.assert_array_equal(found, [box(3, 3, 8, 7)])


def test_an_oval_is_the_ellipse_in_its_bounds(tmp_path: Path) -> None:
    roi = rectangle(10, 4, 22, 12)
    roi.roitype = ROI_TYPE.OVAL
    roi.tofile(tmp_path / "cell.roi")
    found = images(read_regions(tmp_path / "cell.roi", FIELD))[0]
    ellipse = ((ROWS + 0.5 - 10) / 6) ** 2 + ((COLUMNS + 0.5 - 21) / 11) ** 2 <= 1
    np.testing.assert_array_equal(found, ellipse)
    assert found.any(axis=1).sum() == 12
    assert found.any(axis=0).sum() == 22


@pytest.mark.parametrize("roitype", [ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED])
@pytest.mark.parametrize("subpixel", [False, True])
def test_a_drawn_outline_encloses_its_pixels(
    roitype: ROI_TYPE, subpixel: bool, tmp_path: Path
) -> None:
    """An L, whose corners are pixel corners; the last joins the first."""
    corners = np.array([(2, 3), (12, 3), (12, 6), (5, 6), (5, 20), (2, 20)])
    drawn(corners + (0.25 if subpixel else 0), roitype).tofile(tmp_path / "cell.roi")
    found = images(read_regions(tmp_path / "cell.roi", FIELD))
    np.testing.assert_array_equal(found, [box(3, 2, 6, 12) | box(6, 2, 20, 5)])


def test_a_composite_has_its_parts_and_holes(tmp_path: Path) -> None:
    def path(left: int, top: int, right: int, bottom: int) -> list[float]:
        return [0, left, top, 1, right, top, 1, right, bottom, 1, left, bottom, 4]

    parts = [*path(2, 3, 12, 13), *path(5, 6, 8, 10), *path(30, 20, 40, 30)]
    roi = rectangle(2, 3, 38, 27, shape_roi_size=len(parts))
    roi.multi_coordinates = np.array(parts, np.float32)
    roi.tofile(tmp_path / "cell.roi")
    found = images(read_regions(tmp_path / "cell.roi", FIELD))
    expected = box(3, 2, 13, 12) & ~box(6, 5, 10, 8) | box(20, 30, 30, 40)
    np.testing.assert_array_equal(found, [expected])


def test_several_keep_their_order_and_may_overlap_and_stick_out(tmp_path: Path) -> None:
    rois = [rectangle(20, 5, 9, 9), rectangle(2, 3, 4, 5), rectangle(25, 5, 90, 9)]
    for number, roi in enumerate(rois):
        roi.name = f"cell {9 - number}"
    roiwrite(tmp_path / "größe µm.ZIP".lower(), rois)
    with zipfile.ZipFile(tmp_path / "größe µm.zip", "a") as archive:
        archive.writestr("__MACOSX/._cell 9.roi", b"a Mac's own")
        archive.writestr("notes.txt", b"none")
    found = images(read_regions(str(tmp_path / "größe µm.zip"), FIELD))
    expected = [box(5, 20, 14, 29), box(3, 2, 8, 6), box(5, 25, 14, 53)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_as_the_same_pixels(seed: int, tmp_path: Path) -> None:
    """Outlines between pixels, on pixels' centres, on their corners, beyond the field."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    drawn = []
    for number in range(60):
        size = rng.uniform(2, 9) * rng.uniform(0.7, 1.3, len(angle))
        y, x = rng.uniform(0, 37), rng.uniform(0, 53)
        outline = np.stack([y + size * np.sin(angle), x + size * np.cos(angle)], axis=1)
        drawn.append([outline, outline.round(), outline.round() + 0.5][number % 3])
    write_regions(tmp_path / "cells.zip", drawn)
    expected = regions_from_outlines(drawn, FIELD)
    found = read_regions(tmp_path / "cells.zip", FIELD)
    np.testing.assert_array_equal(images(found), images(expected))
    before = (tmp_path / "cells.zip").read_bytes()
    write_regions(tmp_path / "cells.zip", drawn)
    assert (tmp_path / "cells.zip").read_bytes() == before


def test_the_outline_of_a_footprint_encloses_it(tmp_path: Path) -> None:
    mask = np.hypot(ROWS - 18, COLUMNS - 30) < 6
    outline = outlines(mask.astype(np.float32), 0.5)[0]
    write_regions(tmp_path / "cell.roi", [outline])
    np.testing.assert_array_equal(images(read_regions(tmp_path / "cell.roi", FIELD)), [mask])


def test_roifile_reads_what_is_written(tmp_path: Path) -> None:
    write_regions(tmp_path / "cells.zip", [[(3, 2), (3, 9), (8, 2)], [(30, 40), (20, 40), (9, 9)]])
    rois = ImagejRoi.fromfile(tmp_path / "cells.zip")
    assert [roi.name for roi in rois] == ["1", "2"]
    np.testing.assert_array_equal(rois[0].coordinates(), [(2.5, 3.5), (9.5, 3.5), (2.5, 8.5)])


# ------------------------------------------------------------------------- labels and outlines


@pytest.mark.parametrize("kind", [".npy", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
def test_labels_come_in_ascending_order(dtype: str, kind: str, tmp_path: Path) -> None:
    labels = np.zeros(FIELD, dtype)
    labels[20:30, 20:40], labels[3:8, 2:6], labels[33:, 50:] = 3, 90, 17
    path = tmp_path / f"labels{kind}"
    if kind == ".npy":
        np.save(path, labels)
    else:
        tifffile.imwrite(path, labels)
    found = images(read_regions(path, FIELD))
    np.testing.assert_array_equal(found, [labels == label for label in (3, 17, 90)])


@pytest.mark.parametrize("seed", range(3))
def test_random_labels(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 40, FIELD)
    found = images(regions_from_labels(labels))
    np.testing.assert_array_equal(found, [labels == label for label in range(1, 40)])


def test_a_mask_of_one_cell_is_its_region() -> None:
    mask = box(3, 2, 8, 6)
    for labels in (mask, np.uint8(255) * mask):
        np.testing.assert_array_equal(images(regions_from_labels(labels)), [mask])


def test_a_label_may_be_in_parts() -> None:
    dendrite = box(3, 2, 8, 6) | box(20, 20, 30, 40)
    np.testing.assert_array_equal(images(regions_from_labels(dendrite.astype(int))), [dendrite])


def test_an_outline_holds_the_centres_in_it_and_on_it() -> None:
    """Against the distance from the centre, and a triangle counted by hand."""
    angle = np.linspace(0, 2 * np.pi, 2000)
    circle = np.stack([18.3 + 9.7 * np.sin(angle), 30.2 + 9.7 * np.cos(angle)], axis=1)
    found = images(regions_from_outlines([circle, [(0, 0), (0, 3), (3, 0)]], FIELD))
    np.testing.assert_array_equal(found[0], np.hypot(ROWS - 18.3, COLUMNS - 30.2) < 9.7)
    np.testing.assert_array_equal(found[1], ROWS + COLUMNS <= 3)


def test_no_outlines_are_no_regions() -> None:
    assert regions_from_outlines([], FIELD).shape == (37 * 53, 0)


# ---------------------------------------------------------------------------------------- session


def session(path: Path, footprints: sp.csc_array, field: tuple[int, int] = FIELD) -> Path:
    Session.create(path, {})
    root = zarr.open_group(path, mode="r+")
    group = root.create_group("source_extraction", attributes={"field": field})
    parts = group.create_group("footprints", attributes={"shape": footprints.shape})
    for name in ("data", "indices", "indptr"):
        parts.create_array(name, data=getattr(footprints, name))
    return path


def test_footprints_of_a_session_count_from_a_fifth_of_their_maximum(tmp_path: Path) -> None:
    weights = np.maximum(0, 5 - np.hypot(ROWS - 18, COLUMNS - 30)).astype(np.float32)
    both = sp.csc_array(np.stack([weights.ravel(), box(3, 2, 8, 6).ravel()], 1), dtype="float32")
    path = session(tmp_path / "other.zarr", both)
    found = images(read_regions(path, FIELD))
    np.testing.assert_array_equal(found, [weights > 1, box(3, 2, 8, 6)])


# ----------------------------------------------------------------------------------------- errors


def save(array: NDArray[np.generic]) -> Callable[[Path], object]:
    return lambda path: np.save(path, array)


def one_line(path: Path) -> None:
    ImagejRoi(roitype=ROI_TYPE.LINE, x1=1, x2=9, y2=9, name="axis").tofile(path)


def two_of_which_one_outside(path: Path) -> None:
    far = rectangle(60, 3, 4, 5)
    far.name = "far away"
    roiwrite(path, [rectangle(2, 3, 4, 5), far])


def text(path: Path) -> None:
    rectangle(2, 3, 9, 9, subtype=ROI_SUBTYPE.TEXT, text="Here", text_name="Sans").tofile(path)


def curved(path: Path) -> None:
    roi = rectangle(2, 3, 9, 9, shape_roi_size=8)
    roi.multi_coordinates = np.array([0, 2, 3, 2, 9, 9, 3, 3], np.float32)
    roi.tofile(path)


def empty_zip(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def no_cells(path: Path) -> None:
    session(path, sp.csc_array((37 * 53, 0), dtype=np.float32))


def other_field(path: Path) -> None:
    session(path, sp.csc_array((53 * 37, 1), dtype=np.float32), (53, 37))


TWO_PARTS = box(3, 2, 8, 6) | box(20, 20, 30, 40)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        (
            "none.zip",
            lambda path: None,
            r"there is no file of regions '.*none.zip'; give ImageJ RO",
        ),
        ("notes.txt", Path.touch, r"notes.txt holds no regions that can be read; give ImageJ ROIs"),
        ("folder.zip", Path.mkdir, r"folder.zip is a folder but no session; give ImageJ ROIs"),
        ("empty.zip", empty_zip, r"empty.zip holds no ImageJ ROI; save ROIs from the ROI manager"),
        ("cut.zip", Path.touch, r"cut.zip cannot be read as ImageJ ROIs; save it from the ROI man"),
        ("cut.roi", Path.touch, r"cut.roi cannot be read as ImageJ ROIs; save it from the ROI man"),
        ("line.roi", one_line, r"ROI 'axis' of .*line.roi is a line, which encloses no pixels; de"),
        ("text.roi", text, r"ROI 'text' of .*text.roi is a text, which encloses no pixels"),
        ("far.zip", two_of_which_one_outside, r"ROI 'far away' of .*far.zip holds no pixel of the"),
        ("curved.roi", curved, r"ROI 'curved' of .*curved.roi has curves or is damaged; make it"),
        ("cut.tif", Path.touch, r"cut.tif cannot be read as an image"),
        ("real.npy", save(np.ones(FIELD)), r"real.npy holds numbers of type float64; save the lab"),
        ("less.npy", save(np.full(FIELD, -3)), r"less.npy holds the label -3; give labels from 1"),
        ("zero.npy", save(np.zeros(FIELD, int)), r"zero.npy holds no region; give each cell a num"),
        ("mask.npy", save(TWO_PARTS), r"mask.npy is a mask of several cells; give each cell a num"),
        ("255.npy", save(np.uint8(255) * TWO_PARTS), r"255.npy is a mask of several cells; give e"),
        (
            "turned.npy",
            save(np.ones((53, 37), int)),
            r"turned.npy is of a field of 53 x 37 px but this one is 37 x 53 px; give regions of t",
        ),
        ("film.npy", save(np.ones((2, 37, 53), int)), r"of a field of 2 x 37 x 53 px but this one"),
        ("none.zarr", no_cells, r"none.zarr holds no cell; give a session in which cells were f"),
        ("other.zarr", other_field, r"other.zarr is of a field of 53 x 37 px but this one is 37 x"),
        ("new.zarr", lambda path: Session.create(path, {}), r"run source_extraction first"),
    ],
)
def test_what_holds_no_regions_is_said(
    name: str, write: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError) as error:
        read_regions(tmp_path / name, FIELD)
    assert re.search(said, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        ([], r"outline 2 has the shape \(0,\); give three or more points"),
        ([(1, 2), (3, 4)], r"outline 2 has the shape \(2, 2\); give three or more points"),
        (np.ones((5, 3)), r"outline 2 has the shape \(5, 3\); give three or more points"),
        ([(1, 2), (3, np.nan), (5, 1)], "outline 2 has a point that is no number; draw it again"),
        ([(1, 60), (9, 60), (5, 70)], "outline 2 holds no pixel of the field of 37 x 53 px; leave"),
        ([(1.2, 1.2), (1.4, 1.2), (1.4, 1.4)], "outline 2 holds no pixel of the field"),
    ],
)
def test_an_outline_that_is_none_is_named(outline: object, said: str) -> None:
    good = [(2.5, 1.5), (2.5, 5.5), (7.5, 5.5)]
    with pytest.raises(InputError, match=said):
        regions_from_outlines([good, outline], FIELD)
    with pytest.raises(InputError, match=said.replace("outline 2", "the axon")):
        regions_from_outlines([outline], FIELD, ["the axon"])


@pytest.mark.parametrize(
    ("name", "n", "said"),
    [
        ("cells.zip", 0, "0 regions cannot be written to .*cells.zip; give one for a .roi file"),
        ("cells.roi", 2, "2 regions cannot be written to .*cells.roi; give one for a .roi file"),
        ("cells.txt", 1, "cells.txt is no file of ImageJ ROIs; give a name that ends with .zip"),
        ("no/cells.zip", 1, r"cells.zip cannot be written \(No such file or directory\); give an"),
    ],
)
def test_what_cannot_be_written_is_said(name: str, n: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        write_regions(tmp_path / name, [[(1, 2), (3, 4), (9, 1)]] * n)


@pytest.mark.parametrize("kind", [".zip", ".roi"])
def test_damaged_files_are_said(kind: str, tmp_path: Path) -> None:
    """Cut short, or with bytes changed: regions, or a sentence."""
    path, rng, said = tmp_path / f"cells{kind}", np.random.default_rng(1), []
    write_regions(path, [[(3, 2), (3, 9), (8, 2)]])
    whole = path.read_bytes()
    for trial in range(300):
        content = bytearray(whole)
        if trial % 3 == 0:
            content = content[: rng.integers(0, len(content))]
        for place in rng.integers(0, len(content) or 1, 3 if content else 0):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_regions(path, FIELD)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 50
    assert not any("\n" in sentence for sentence in said)
