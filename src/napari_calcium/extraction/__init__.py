"""Source extraction: from a registered movie to footprints and traces."""
