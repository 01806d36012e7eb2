"""AdaToken-3D: the loop of PyramidDrop with other schedules."""

from .pyramiddrop import inputs, loop

VARIANTS = {"chat": {}, "scanqa": {"keep": (0.8, 0.6, 0.4)}}
TYPICAL: dict = {}

__all__ = ["TYPICAL", "VARIANTS", "inputs", "loop"]
