"""Ops that move everything aligned with the tokens."""
