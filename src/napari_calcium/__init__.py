"""Calcium imaging analysis in napari: lazy, larger than memory, and the same headless."""
