"""Keras: imported where it is needed and nowhere else, and its models stored reproducibly."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from napari_calcium.errors import InputError

__all__ = ["import_keras", "save_model"]

NOISE = (b"absl::InitializeLog", b"cudart_stub.cc", b"port.cc:", b"cpu_feature_guard.cc")
"""What lines hold that TensorFlow writes when it is imported, whatever its log level."""


def import_keras(fast: bool = False) -> Any:
    """Return Keras, at work on TensorFlow and one processor core, where it is not yet at work.

    Parameters
    ----------
    fast : bool
        Whether a GPU is used where there is one, all processor cores, and what is fastest on this
        processor: the sums may differ in the last digits from those on another. The environment
        variable ``KERAS_BACKEND`` then chooses what Keras is at work on.

    Raises
    ------
    InputError
        If TensorFlow is not there, or Keras cannot be imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1" if fast else "0")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with _without_noise():
            import keras

            if not fast:
                import tensorflow
    except Exception as error:
        raise InputError(
            f"TensorFlow cannot be imported ({type(error).__name__}: {error}); install it with "
            "pip install tensorflow"
        ) from error
    if not fast:
        with contextlib.suppress(RuntimeError):  # somebody else has set it to work already
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
            tensorflow.config.set_visible_devices([], "GPU")
    return keras


def save_model(model: Any, path: str | Path) -> None:
    """Write a network as a .keras file without a date: equal networks give equal files.

    Parameters
    ----------
    model : keras.Model
        As `train` returns it.
    path : path
        The file, NAME.keras; it is whole or not there.
    """
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        stored = Path(folder, "model.keras")
        model.save(stored)
        stored.write_bytes(_reproducible(stored.read_bytes()))
        stored.replace(path)


def _reproducible(content: bytes) -> bytes:
    """Write a .keras file again, without dates and without numbers that were places in memory."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(target, "w") as new,
    ):
        for name in sorted(old.namelist()):
            data = old.read(name)
            if name.endswith(".json"):
                known = {key: value for key, value in json.loads(data).items() if "date" not in key}
                data = json.dumps(_renumbered(known, {}), sort_keys=True).encode()
            entry = zipfile.ZipInfo(name)  # dated 1980
            new.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    return target.getvalue()


def _renumbered(value: Any, numbers: dict[int, int]) -> Any:
    """Return a configuration in which shared objects are numbered as they come."""
    if isinstance(value, list):
        return [_renumbered(part, numbers) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: numbers.setdefault(part, len(numbers))
        if key == "shared_object_id"
        else _renumbered(part, numbers)
        for key, part in value.items()
    }


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Keep `NOISE` from the standard error of the process; what else is written comes after."""
    if "tensorflow" in sys.modules or sys.__stderr__ is None:
        yield
        return
    with tempfile.TemporaryFile() as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            caught.seek(0)
            lines = [line for line in caught if not any(part in line for part in NOISE)]
            with contextlib.suppress(OSError):
                os.write(2, b"".join(lines))
            os.close(kept)
