"""Seams into models and engines. Each needs its own package installed and is imported by itself."""
