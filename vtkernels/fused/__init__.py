"""Ops that score, select and compact in one pass."""
