"""Experiment trackers for AutoModel."""
