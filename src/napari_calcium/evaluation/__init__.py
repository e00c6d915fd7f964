"""Evaluation: which components are cells."""
