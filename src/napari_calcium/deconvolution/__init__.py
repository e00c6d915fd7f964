"""Deconvolution: from a fluorescence trace to the activity that made it."""
