"""Ops that give every visual token a score."""
