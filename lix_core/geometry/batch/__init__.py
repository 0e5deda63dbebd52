"""Batched torch versions of lix_core.geometry, for training.

Each agrees with its NumPy namesake to 1e-4; batch.normals says where its default method, on noisy depth, does so for most pixels only.
"""
