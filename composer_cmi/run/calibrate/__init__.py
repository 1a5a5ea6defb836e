"""Probabilities that can be used: a temperature fitted on rows kept out of training, and what it changed."""
