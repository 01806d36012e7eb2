"""Shapes, inputs, peers and checks of the ops, in a module per family."""

from . import attend, attention, cluster, diverse, prototypes, selection, temporal
from .family import Family

OPS: dict[str, Family] = {**attend.OPS, **attention.OPS, **temporal.OPS, **prototypes.OPS, **selection.OPS, **diverse.OPS,
                          **cluster.OPS}
