"""Shapes, inputs, peers and checks of the ops, in a module per family."""

from . import attend, attention, caches, cluster, diverse, paged, pool, prototypes, selection, temporal
from .family import Family

_MODULES = (attention, temporal, prototypes, selection, diverse, cluster, attend, caches, paged, pool)
OPS: dict[str, Family] = {op: family for module in _MODULES for op, family in module.OPS.items()}
