"""The motion of a session and of a preview, as it is plotted, without a window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_calcium.io.session import Session
from napari_calcium.motion.correction import MotionCorrectionParameters
from napari_calcium.napari import motion_traces
from napari_calcium.napari.motion_traces import motion_of_preview, read_motion
from napari_calcium.pipeline.preview import preview, read_preview, recorded_movie


@pytest.mark.parametrize("frames_per_read", [7, 4096])
def test_the_motion_of_a_session_is_what_is_stored(
    cropped: Path, monkeypatch: pytest.MonkeyPatch, frames_per_read: int
) -> None:
    monkeypatch.setattr(motion_traces, "FRAMES_PER_READ", frames_per_read)
    session, found = Session(cropped), read_motion(cropped)
    assert found is not None
    shifts = session.shifts()
    assert shifts.piecewise is not None
    assert shifts.piecewise.shape[1:3] > (1, 1)
    assert list(found.shifts) == ["y", "x"]
    for column, axis in enumerate("yx"):
        np.testing.assert_array_equal(found.shifts[axis], shifts.rigid[:, column])
        patches = shifts.piecewise[..., column].reshape(200, -1)
        np.testing.assert_array_equal(found.ranges[axis][0], patches.min(axis=1))
        np.testing.assert_array_equal(found.ranges[axis][1], patches.max(axis=1))
    np.testing.assert_array_equal(found.after, session.read("motion_correction/correlation_after"))
    np.testing.assert_array_equal(found.times, np.arange(200) / 10)
    attrs = session.group_attrs("motion_correction")
    figures = {each.name: (each.before, each.after) for each in found.figures}
    assert figures["crispness"] == (attrs["crispness_before"], attrs["crispness_after"])
    principal = [
        session.read(f"motion_correction/principal_motion_{when}").mean()
        for when in ("before", "after")
    ]
    np.testing.assert_allclose(figures["principal motion"], principal)


def test_there_is_none_before_motion_correction(tmp_path: Path) -> None:
    assert read_motion("") is None
    assert read_motion(tmp_path) is None
    assert read_motion(Session.create(tmp_path / "s.zarr", {"source": []}).path) is None


def test_the_motion_of_a_preview_begins_at_its_first_frame(cropped: Path, tmp_path: Path) -> None:
    parameters = MotionCorrectionParameters(method="rigid")
    preview(recorded_movie(cropped), parameters, 40, 100, tmp_path)
    found = motion_of_preview(read_preview(tmp_path), 10.0)
    assert found.title == "Preview of frames 40 to 99"
    np.testing.assert_allclose(found.times[[0, -1]], [4, 9.9])
    assert found.ranges == {}
    assert [each.name for each in found.figures] == ["crispness", "correlation"]
    np.testing.assert_array_equal(replace(found, frame_rate=0.0).times, np.arange(40, 100))
