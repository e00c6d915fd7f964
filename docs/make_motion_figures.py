"""Make ``images/one_photon_motion.png``: a real one-photon recording before and after correction.

``python docs/make_motion_figures.py FOLDER`` with the recording as ``FOLDER/movie.zarr``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from napari_calcium.io.session import Session
from napari_calcium.pipeline.recipe import Recipe
from napari_calcium.pipeline.run import run

FRAME_RATE = 20.0
ONE_PHOTON = {"method": "rigid", "high_pass": 10.0, "smoothing": 3.0, "max_shift": 6}
ZOOM = slice(100, 200), slice(80, 200)


def main() -> None:
    """Correct the recording and draw it."""
    mpl.use("Agg")
    recipe = Recipe({"import": {"frame_rate": FRAME_RATE}, "motion_correction": ONE_PHOTON})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.zarr"
        run(path, [Path(sys.argv[1]) / "movie.zarr"], recipe=recipe, until="motion_correction")
        draw(Session(path), Path(__file__).parent / "images" / "one_photon_motion.png")


def draw(session: Session, path: Path) -> None:
    """Draw means before and after, a part of them, and the shifts."""
    from matplotlib import pyplot as plt

    movies = [session.movie(name) for name in ("movie/frames", "motion_correction/frames")]
    means = [np.asarray(movie.frames.mean(axis=0)) for movie in movies]
    measures = session.group_attrs("motion_correction")
    motion = [session.read(f"motion_correction/principal_motion_{w}") for w in ("before", "after")]
    sys.stdout.write(f"principal motion {motion[0].mean():.3f} -> {motion[1].mean():.3f} px; ")
    sys.stdout.write(f"crispness {measures['crispness_before']:.3f}")
    sys.stdout.write(f" -> {measures['crispness_after']:.3f}\n")
    figure = plt.figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplot_mosaic([["a", "b"], ["c", "d"], ["e", "e"]], height_ratios=[3, 3, 1.6])
    for names, part in (("ab", (slice(None), slice(None))), ("cd", ZOOM)):
        high = np.percentile(means[1][part], 99.7)
        for name, image, title in zip(names, means, ("as recorded", "corrected"), strict=True):
            panels[name].imshow(image[part], cmap="gray", vmin=means[1].min(), vmax=high)
            panels[name].set_title(f"mean, {title}")
            panels[name].axis("off")
    plot_shifts(session, panels["e"])
    figure.savefig(path, dpi=80)


def plot_shifts(session: Session, panel: Any) -> None:
    """Draw the shifts of the frames."""
    shifts = session.shifts()
    seconds = np.arange(shifts.n_frames) / session.frame_rate
    for axis, name in enumerate("yx"):
        panel.plot(seconds, shifts.rigid[:, axis], lw=0.7, label=f"shift {name}")
    panel.set(xlabel="time (s)", ylabel="px", xlim=(0, seconds[-1]))
    panel.legend(loc="upper right", ncols=2)


if __name__ == "__main__":
    main()
