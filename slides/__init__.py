"""Pixels and places: opening slides, their geometry, tissue, and the plan of patches worth reading."""
