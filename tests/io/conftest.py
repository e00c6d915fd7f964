"""A session written by hand, without any stage: every number in it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from napari_calcium.components import Background, Components
from napari_calcium.io.session import (
    Session,
    StageRecord,
    components_attrs,
    components_to_arrays,
    stage_digest,
)
from napari_calcium.io.shards import write_frames

FIELD = (37, 53)
N_FRAMES = 40
CENTRES = [(8, 40), (30, 11), (20, 25)]
"""Places (y, x) of three cells; transposed, the first would lie outside the field."""

NEEDS = {
    "movie": (),
    "motion_correction": ("import",),
    "summary_images": ("motion_correction",),
    "source_extraction": ("motion_correction",),
    "component_evaluation": ("motion_correction", "source_extraction"),
    "dff": ("source_extraction",),
    "spike_inference": ("dff",),
}
Arrays = Mapping[str, NDArray[Any]]
Put = Callable[..., StageRecord]


@pytest.fixture
def components() -> Components:
    """Three discs of radius 4 px, with the identities 4, 7 and 9."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    discs = [(y - cy) ** 2 + (x - cx) ** 2 <= 16 for cy, cx in CENTRES]
    footprints = np.stack([disc.ravel() / np.sqrt(disc.sum()) for disc in discs], axis=1)
    traces = rng.normal(size=(3, 3, N_FRAMES)).astype("float32")
    background = Background(
        sp.csc_array(rng.random((y.size, 2))), rng.normal(size=(2, N_FRAMES)).astype("float32")
    )
    return Components(
        sp.csc_array(footprints), FIELD, traces[0], traces[1], traces[2] ** 2, background, [4, 7, 9]
    )


@pytest.fixture
def put() -> Put:
    """Write one stage's group into a session, as if the stage had run."""

    def write(
        session: Session, group: str, arrays: Arrays, attrs: Any = None, **parameters: Any
    ) -> StageRecord:
        groups = {"import": "movie"}
        needed = {stage: session.record(groups.get(stage, stage)) for stage in NEEDS[group]}
        inputs = {stage: record.digest for stage, record in needed.items() if record}
        stage = "import" if group == "movie" else group
        digest = stage_digest(stage, parameters, inputs)
        record = StageRecord(stage, parameters, inputs or {"source": "none"}, digest, {})
        with session.writing(group) as writer:
            for name, values in arrays.items():
                if name == "frames":
                    target = writer.create_frames(name, da.from_array(values, chunks=-1))
                    write_frames(target, 0, values)
                else:
                    writer.write(name, values)
            for inner, values in (attrs or {}).items():
                writer.attrs(inner, values)
            writer.commit(record)
        return record

    return write


@pytest.fixture
def handmade(tmp_path: Path, components: Components, put: Put) -> Session:
    """All groups; the first and the last cell are accepted."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 60_000, (N_FRAMES, *FIELD), dtype="uint16")
    session = Session.create(tmp_path / "handmade.zarr", {"source": []})
    put(session, "movie", {"frames": frames}, frame_rate=8.0, pixel_size=1.5)
    shifts, image = np.zeros((N_FRAMES, 2), "float32"), frames.mean(axis=0).astype("float32")
    corrected = {"frames": frames, "shifts_rigid": shifts, "template": image}
    put(session, "motion_correction", corrected)
    put(session, "summary_images", dict.fromkeys(("mean", "max", "std", "correlation"), image))
    arrays, attrs = components_to_arrays(components), components_attrs(components)
    put(session, "source_extraction", arrays, attrs)
    scores = {
        "snr": np.array([3.0, 1.0, 9.0], "float32"),
        "spatial_correlation": np.array([0.9, 0.2, 0.8], "float32"),
        "cnn_probability": np.full(3, np.nan, "float32"),
        "accepted": np.array([True, False, True]),
    }
    put(session, "component_evaluation", scores)
    dff = rng.normal(size=(2, 3, N_FRAMES)).astype("float32")
    flags = np.zeros(3, bool)
    put(session, "dff", {"traces": dff[0], "baseline": dff[1] ** 2 + 1, "floored": flags})
    spikes = {
        "rate": rng.exponential(size=(3, N_FRAMES)).astype("float32"),
        "noise_level": np.array([1.5, np.nan, 9.25], "float32"),
        "marks": np.array([0, 1, 18], "uint8"),
    }
    spikes["rate"][1], spikes["rate"][:, :3] = np.nan, np.nan
    meanings = {"1": "unknown", "2": "too noisy", "16": "smoothed"}
    put(session, "spike_inference", spikes, {"marks": {"meanings": meanings}})
    return session
