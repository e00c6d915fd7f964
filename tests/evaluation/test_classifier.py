from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import ndimage

from napari_calcium.errors import InputError
from napari_calcium.evaluation import classifier
from napari_calcium.evaluation.classifier import SHIPPED, check_classifier, cnn_probability
from napari_calcium.evaluation.crops import SIDE
from napari_calcium.evaluation.network import build_network
from napari_calcium.keras_models import import_keras, save_model

pytestmark = pytest.mark.tensorflow

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHAPE = (137, 153)
RADIUS = 6.0
TOLERANCE = 1e-3
"""What sums in another order cost in single precision, with room; a new model differs by more."""

shipped = pytest.mark.skipif(not SHIPPED.exists(), reason="the model has not been trained yet")


def drawings() -> dict[str, np.ndarray]:
    """Footprints made by hand in a field of 137 x 153 px, of cells with a radius of 6 px."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    far = np.hypot(y - 61.3, x - 70.8)
    disc = np.clip(RADIUS + 0.5 - far, 0, 1)
    texture = np.random.default_rng(0).random(SHAPE)
    speckle = (texture > 0.8) & (far < 1.3 * RADIUS)
    second = np.clip(RADIUS + 0.5 - np.hypot(y - 61.3, x - 84.0), 0, 1)
    return {
        "doughnut": disc * (1 - 0.6 * np.exp(-((far / 3) ** 2))),
        "disc": disc * (0.8 + 0.4 * ndimage.gaussian_filter(texture, 1)),
        "half": disc * (x < 70),
        "line": np.clip(2 - np.abs(y - 0.5 * x - 26), 0, 1) * (np.abs(x - 70) < 18),
        "speckle": speckle.astype(float),
        "pair": disc + second,
    }


def columns(*images: np.ndarray) -> sp.csc_array:
    return sp.csc_array(np.stack([image.ravel() for image in images], axis=1).astype(np.float32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model: it says something else of everything."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    import_keras().utils.set_random_seed(0)
    save_model(build_network(), path)
    return str(path)


@shipped
def test_what_the_shipped_model_says_of_drawings() -> None:
    found = cnn_probability(columns(*drawings().values()), SHAPE, RADIUS)
    said = dict(zip(drawings(), found.tolist(), strict=True))
    assert min(said["doughnut"], said["disc"]) > 0.5
    assert max(said["half"], said["line"], said["speckle"], said["pair"]) < 0.5
    assert said == pytest.approx(GOLDEN, abs=TOLERANCE)


@shipped
def test_the_shipped_model_knows_a_cell_at_every_scale() -> None:
    """A doughnut is a cell, and a line none, for cells of any radius, if the radius is told."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for radius in (3.0, 5.0, 9.0, 14.0):
        far = np.hypot(y - 61.3, x - 70.8)
        cell = np.clip(radius + 0.5 - far, 0, 1) * (1 - 0.6 * np.exp(-((2 * far / radius) ** 2)))
        line = np.clip(radius / 3 - np.abs(y - 61), 0, 1) * (np.abs(x - 70) < 3 * radius)
        probability = cnn_probability(columns(cell, line), SHAPE, radius)
        assert probability[0] > 0.5 > probability[1]


@shipped
def test_the_shipped_model_is_small_and_has_a_card() -> None:
    assert SHIPPED.stat().st_size < 2e6
    assert SHIPPED.with_suffix(".json").exists()
    check_classifier()


def test_an_empty_footprint_is_not_asked(model: str) -> None:
    images = list(drawings().values())
    whole = cnn_probability(columns(*images), SHAPE, RADIUS, model)
    found = cnn_probability(columns(0 * images[0], *images), SHAPE, RADIUS, model)
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[1:], whole)
    assert found.dtype == np.float32
    none = cnn_probability(sp.csc_array((37 * 53, 0), dtype=np.float32), (37, 53), 5.0, model)
    assert none.shape == (0,)


def test_the_same_to_the_bit_in_any_order_and_number_and_thread(model: str) -> None:
    rng = np.random.default_rng(0)
    images = [
        ndimage.rotate(image, angle, reshape=False, order=1)
        for image in drawings().values()
        for angle in range(0, 360, 8)
    ]
    many = columns(*images)
    every = cnn_probability(many, SHAPE, RADIUS, model)
    order = rng.permutation(many.shape[1])
    np.testing.assert_array_equal(
        cnn_probability(many[:, order], SHAPE, RADIUS, model), every[order]
    )
    np.testing.assert_array_equal(cnn_probability(many[:, 7:9], SHAPE, RADIUS, model), every[7:9])
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cnn_probability, many, SHAPE, RADIUS, model) for _ in range(4)]
        for one in asked:
            np.testing.assert_array_equal(one.result(), every)


def test_pieces_make_no_difference(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = columns(*drawings().values())
    whole = cnn_probability(images, SHAPE, RADIUS, model)
    monkeypatch.setattr(classifier, "CELLS_AT_ONCE", 4)
    np.testing.assert_array_equal(cnn_probability(images, SHAPE, RADIUS, model), whole)


def test_a_changed_file_is_read_again(model: str, tmp_path: Path) -> None:
    images, path = columns(*drawings().values()), tmp_path / "model.keras"
    path.write_bytes(Path(model).read_bytes())
    before = cnn_probability(images, SHAPE, RADIUS, str(path))
    import_keras().utils.set_random_seed(1)
    save_model(build_network(), path)
    assert not np.array_equal(cnn_probability(images, SHAPE, RADIUS, str(path)), before)


def test_what_is_no_classifier_is_said(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match=r"does not exist; give a \.keras file"):
        check_classifier(str(tmp_path / "none.keras"))
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(InputError, match=r"it is no \.keras file"):
        check_classifier(str(tmp_path / "text.keras"))
    whole = Path(model).read_bytes()
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    (tmp_path / "arrays.keras").write_bytes((tmp_path / "arrays.npz").read_bytes())
    (tmp_path / "broken.keras").write_bytes(whole.replace(b"config.json", b"confug.json"))
    for name in ("arrays", "broken"):
        with pytest.raises(InputError, match=rf"{name}\.keras is no classifier of crops"):
            cnn_probability(
                columns(*drawings().values()), SHAPE, 5.0, str(tmp_path / f"{name}.keras")
            )


def test_a_model_of_something_else_is_said(tmp_path: Path) -> None:
    keras = import_keras()
    inputs = keras.layers.Input((28, 28, 1))
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "digits.keras")
    with pytest.raises(InputError, match=r"it takes \(None, 28, 28, 1\)"):
        cnn_probability(columns(*drawings().values()), SHAPE, 5.0, str(tmp_path / "digits.keras"))


@pytest.fixture(scope="module")
def keras_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a layer that only Keras runs."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "normalized.keras"
    inputs = keras.layers.Input((SIDE, SIDE, 1))
    values = keras.layers.BatchNormalization()(keras.layers.Flatten()(inputs))
    keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(values)).save(path)
    return str(path)


def test_a_model_that_only_keras_runs_is_asked_too(keras_model: str) -> None:
    check_classifier(keras_model)
    found = cnn_probability(columns(*drawings().values()), SHAPE, RADIUS, keras_model)
    assert np.isfinite(found).all()
    assert np.ptp(found) > 0


def test_both_ways_agree(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To single precision; the second time the model is left to Keras."""
    images = columns(*drawings().values())
    plain = cnn_probability(images, SHAPE, RADIUS, model)
    monkeypatch.setattr(classifier, "_plain", lambda file: None)
    classifier._model.cache_clear()
    np.testing.assert_allclose(cnn_probability(images, SHAPE, RADIUS, model), plain, atol=1e-5)
    classifier._model.cache_clear()


def test_without_tensorflow_it_is_said_what_to_do(
    model: str, keras_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it is needed."""
    monkeypatch.setattr(classifier.importlib.util, "find_spec", lambda name: None)
    check_classifier(model)
    with pytest.raises(InputError, match="not installed; install it with pip install tensorflow"):
        check_classifier(keras_model)


def test_what_reaches_the_border_is_not_asked(model: str) -> None:
    """A cell that is cut there looks like half a cell."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    cut = np.clip(RADIUS + 0.5 - np.hypot(y - 2, x - 70), 0, 1)
    near = np.clip(RADIUS + 0.5 - np.hypot(y - 8, x - 70), 0, 1)
    found = cnn_probability(columns(cut, near), SHAPE, RADIUS, model)
    assert np.isnan(found).tolist() == [True, False]


def test_asking_imports_no_tensorflow_and_writes_nothing(model: str) -> None:
    """In a process of its own."""
    code = (
        "import os, sys, numpy as np, scipy.sparse as sp\n"
        "from napari_calcium.evaluation.classifier import check_classifier, cnn_probability\n"
        "check_classifier(sys.argv[1])\n"
        "columns = sp.csc_array(np.eye(1961, 1, -910, np.float32))\n"
        "assert np.isfinite(cnn_probability(columns, (37, 53), 5.0, sys.argv[1])).all()\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
        "os.write(2, b'still here')\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    command = [sys.executable, "-W", "error", "-c", code, model]
    result = subprocess.run(command, capture_output=True, timeout=120, env=clean, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"still here")


GOLDEN = {
    "doughnut": 0.9844,
    "disc": 0.9720,
    "half": 0.2418,
    "line": 0.0008,
    "speckle": 0.0098,
    "pair": 0.0032,
}
"""What the shipped model says of the drawings."""
