"""Motion: where each frame lies, and the movie put right."""
