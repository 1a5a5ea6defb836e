"""Frozen classifiers that students learn from: read from anywhere, run once, their logits kept."""
