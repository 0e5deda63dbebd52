"""lix_core: perception for robots that see the street with one camera. Knows nothing of ROS."""

__version__ = "0.1.0"
