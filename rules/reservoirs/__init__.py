"""Reservoir computing: echo state networks on rooted trees, and their readouts."""

from weightledger.rules.reservoirs.readout import ridge, with_bias
from weightledger.rules.reservoirs.rooted_trees import count_rooted_trees, path, rooted_trees, star
from weightledger.rules.reservoirs.spectral import scale_to_radius, spectral_radius
from weightledger.rules.reservoirs.tree import TreeReservoir

__all__ = [
    "TreeReservoir",
    "count_rooted_trees",
    "path",
    "ridge",
    "rooted_trees",
    "scale_to_radius",
    "spectral_radius",
    "star",
    "with_bias",
]
