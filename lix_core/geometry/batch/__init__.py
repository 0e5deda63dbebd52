"""Batched torch versions of lix_core.geometry, for training; each agrees with its NumPy namesake to 1e-4."""
