"""Distillation: what a student that sees RGB learns from a teacher that sees RGB and X. The mathematics is in docs/distillation.md."""
