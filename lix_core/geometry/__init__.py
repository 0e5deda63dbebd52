"""From stereo pairs and LiDAR scans to depth, surface normals and X. Conventions: lix_core.camera."""
