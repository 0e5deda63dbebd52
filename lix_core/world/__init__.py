"""A small simulated street whose depth, normals and labels are exact: one ray caster under every sensor."""
