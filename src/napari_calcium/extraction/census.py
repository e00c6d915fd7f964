"""What became of all that looked like a cell: which threshold removed how many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from napari_calcium.extraction.parameters import SourceExtractionParameters

__all__ = ["Census"]


@dataclass(frozen=True)
class Census:
    """Candidates of a search and what removed them; see `Census.sentence`.

    Parameters
    ----------
    candidates : int
        Components that the patches found, each counted in the patch its centre lies in.
    few_pixels : int
        Places that were active enough but had too few pixels to be a candidate.
    merged, small, large, ragged, inside, faded : int
        Removed because they were part of another cell, below `min_size`, above `max_size`, above
        `max_spread`, inside a stronger cell, or lost all their pixels to neighbours and noise.
    short_patches, missing_patches : int
        Patches of fewer than three averaged frames, and without a pixel that is always finite.
    strongest : float
        Largest score that was not enough, sd; -inf where there was none.
    """

    candidates: int = 0
    few_pixels: int = 0
    merged: int = 0
    small: int = 0
    large: int = 0
    ragged: int = 0
    inside: int = 0
    faded: int = 0
    short_patches: int = 0
    missing_patches: int = 0
    strongest: float = -math.inf

    @classmethod
    def joined(cls, parts: Sequence[Census]) -> Census:
        """Return the sum over patches.

        Examples
        --------
        >>> Census.joined([Census(candidates=2, strongest=3.0), Census(candidates=1)])
        Census(candidates=3, few_pixels=0, merged=0, small=0, large=0, ragged=0, inside=0, faded=0,
        short_patches=0, missing_patches=0, strongest=3.0)
        """
        counts = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(cls)[:-1]}
        return cls(**counts, strongest=max((part.strongest for part in parts), default=-math.inf))

    def plus(self, **counts: int) -> Census:
        """Return the census with some counts raised."""
        return replace(self, **{name: getattr(self, name) + n for name, n in counts.items()})

    def sentence(self, n_cells: int, parameters: SourceExtractionParameters) -> str:
        """Say how many candidates became cells and what removed the others.

        Examples
        --------
        >>> Census(candidates=9, small=6, merged=1).sentence(2, SourceExtractionParameters())
        '2 cells of 9 candidates: 6 below min_size (0.5 discs), 1 merged.'
        >>> Census(strongest=7.25).sentence(0, SourceExtractionParameters())
        'No cells: no place reached the threshold of 12 sd (the strongest had 7.2 sd).'
        """
        found = f"{n_cells or 'No'} cell{'' if n_cells == 1 else 's'}"
        removed = ", ".join(self._removed(parameters))
        places = "place" if self.few_pixels == 1 else "places"
        few = f"{places} had too few pixels for a cell_radius of {parameters.cell_radius:g} px"
        if self.candidates:
            word = "candidate" if self.candidates == 1 else "candidates"
            also = f"; {self.few_pixels} more {few}" if self.few_pixels else ""
            return f"{found} of {self.candidates} {word}{': ' if removed else ''}{removed}{also}."
        if self.few_pixels:
            return f"{found}: {self.few_pixels} {few}."
        if self.missing_patches:
            return f"{found}: every pixel that could hold one is NaN or infinite in some frame."
        if self.short_patches:
            return (
                f"{found}: the movie is too short to search it in averaged frames; "
                "lower decimate_time or decay_time."
            )
        if math.isfinite(self.strongest):
            return (
                f"{found}: no place reached the threshold of {parameters.threshold:g} sd "
                f"(the strongest had {self.strongest:.1f} sd)."
            )
        return f"{found}: nothing in the movie changes beyond its noise."

    def _removed(self, parameters: SourceExtractionParameters) -> list[str]:
        reasons = {
            "small": f"below min_size ({parameters.min_size:g} discs)",
            "large": f"above max_size ({parameters.max_size:g} discs)",
            "ragged": f"above max_spread ({parameters.max_spread:g})",
            "inside": f"in a stronger cell (duplicate_overlap {parameters.duplicate_overlap:g})",
            "faded": f"without a pixel above the noise (sparsity {parameters.sparsity:g} sd)",
            "merged": "merged",
        }
        counts = {name: getattr(self, name) for name in reasons}
        return [f"{n} {reasons[name]}" for name, n in counts.items() if n]
