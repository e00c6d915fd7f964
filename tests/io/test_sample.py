"""The sample recording that comes with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.io import sample
from napari_calcium.io.recording import open_recording


def test_the_recording_and_its_truth_are_of_one_simulation() -> None:
    recording = open_recording([sample.sample_recording()])
    assert recording.frames.ndim == 3
    assert recording.frame_rate == pytest.approx(sample.SAMPLE_FRAME_RATE)
    with np.load(sample.sample_truth()) as truth:
        assert len(truth.files) > 0


def test_an_installation_without_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sample, "_folders", lambda: [tmp_path])
    with pytest.raises(InputError, match=r"sample\.tif is not installed"):
        sample.sample_recording()
