"""Modules of torch: built, filled, saved, loaded."""
