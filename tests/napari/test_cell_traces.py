"""One cell's traces, read from a session without a window."""

from __future__ import annotations

import numpy as np

from napari_calcium.io.session import Session
from napari_calcium.napari.cell_traces import read_cell


def test_a_cell_is_read_by_its_identity(session: Session) -> None:
    components, quality = session.components(), session.quality()
    for row, cell_id in enumerate(components.cell_id):
        cell = read_cell(session, int(cell_id))
        assert cell is not None
        np.testing.assert_array_equal(cell.denoised, components.traces[row])
        np.testing.assert_array_equal(cell.raw, (components.traces + components.residuals)[row])
        np.testing.assert_array_equal(cell.dff, session.read("dff/traces")[row])
        np.testing.assert_allclose(cell.seconds[[0, 1, -1]], [0, 0.1, 19.9])  # 200 frames, 10 Hz
        said = "accepted" if quality.accepted[row] else "rejected"
        scores = f"SNR {quality.snr[row]:.1f}, r {quality.spatial_correlation[row]:.2f}"
        assert cell.title == f"cell {cell_id}, {scores}, {said}"


def test_there_is_no_cell_that_was_not_found(session: Session) -> None:
    assert read_cell(session, 10_000) is None
