"""Activity: from fluorescence to dF/F."""
