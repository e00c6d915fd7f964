"""Dock widgets, readers and sample data for napari."""
