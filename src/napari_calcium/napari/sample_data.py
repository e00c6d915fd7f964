"""What is under *File > Open Sample*."""

from __future__ import annotations

from pathlib import Path

from napari_calcium.io.recording import open_recording
from napari_calcium.io.sample import SAMPLE_FRAME_RATE, sample_recording
from napari_calcium.napari.layers import KEY, LayerData, recording_layer

__all__ = ["sample_layers"]


def sample_layers() -> list[LayerData]:
    """Return the sample recording as a layer that the import form knows the frame rate of."""
    source = sample_recording()
    data, attributes, kind = recording_layer(open_recording([source]), [str(source)])
    attributes["metadata"][KEY] |= {
        "frame_rate": SAMPLE_FRAME_RATE,
        "new_session": str(Path.home() / "napari-calcium-sample.zarr"),
    }
    return [(data, attributes, kind)]
