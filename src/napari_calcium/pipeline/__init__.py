"""The stages, the recipe and the run: the only place that computes."""
