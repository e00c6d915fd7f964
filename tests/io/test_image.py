"""Single images: what is read of them, and what is said where they are none."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_calcium.errors import InputError
from napari_calcium.io.image import read_image

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", [".npy", ".tif", ".TIFF"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(37, 53), (3, 37, 53), (1, 37, 53)])
def test_comes_back_as_it_was(
    shape: tuple[int, ...], dtype: str, kind: str, tmp_path: Path
) -> None:
    image = RNG.uniform(0, 120, shape).astype(dtype)
    path = tmp_path / f"größe µm{kind}"
    if kind == ".npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, photometric="minisblack")
    found = read_image(str(path))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image[0] if shape[0] == 1 else image)


def test_a_folder_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    np.save(tmp_path / "t.npy", np.zeros((37, 53)))
    assert read_image("~/t.npy").shape == (37, 53)


def test_no_numbers_are_kept(tmp_path: Path) -> None:
    image = np.full((37, 53), np.nan, np.float32)
    np.save(tmp_path / "t.npy", image)
    assert np.isnan(read_image(tmp_path / "t.npy")).all()


def pickled(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([{"a": 1}]), allow_pickle=True)
    path.with_suffix(".npy").rename(path)


def packed(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((37, 53)))


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("none.tif", lambda path: None, "there is no image '.*none.tif'; give an existing .tif or"),
        ("folder.tif", Path.mkdir, "there is no image '.*folder.tif'; give an existing .tif or"),
        ("text.tif", lambda path: path.write_text("no image"), "text.tif cannot be read as an ima"),
        ("empty.tif", Path.touch, "empty.tif cannot be read as an image; give a .tif or .npy file"),
        ("empty.npy", Path.touch, "empty.npy cannot be read as an image; give a .tif or .npy file"),
        ("pickle.npy", pickled, "pickle.npy cannot be read as an image; give a .tif or .npy file"),
        ("packed.npy", packed, "packed.npy "),
        ("line.npy", lambda path: np.save(path, np.zeros(9)), r"has the shape \(9,\); give one im"),
        (
            "film.npy",
            lambda path: np.save(path, np.zeros((2, 3, 4, 5))),
            r"has the shape \(2, 3, 4, 5\); give one image \(y, x\) or one volume \(z, y, x\)",
        ),
        (
            "wave.npy",
            lambda path: np.save(path, np.zeros((3, 4), complex)),
            "has pixels of type complex128; save it as integers or real numbers",
        ),
    ],
)
def test_what_is_no_image_is_said(
    name: str, write: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError) as error:
        read_image(tmp_path / name)
    assert re.search(said, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [".npy", ".tif"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_damaged_files_are_said(kind: str, compression: str | None, tmp_path: Path) -> None:
    """Cut short, or with bytes changed in the header: an image, or a sentence."""
    logging.disable(logging.CRITICAL)
    path, image = tmp_path / f"t{kind}", RNG.integers(0, 900, (37, 53), dtype="uint16")
    if kind == ".npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, compression=compression)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 2:
            content = content[: rng.integers(0, len(content))]
        else:
            content[rng.integers(0, 120)] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_image(path)
        except InputError:
            refused += 1
    logging.disable(logging.NOTSET)
    assert refused > 20
