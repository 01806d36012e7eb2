"""Ops that choose which tokens stay."""
