"""Sparse annotations simulated from dense masks: scribbles, points, boxes and annotated slices."""

from mambaseg.datamodules.scribbles.coverage import Coverage, measure_coverage
from mambaseg.datamodules.scribbles.simulate import SIMULATORS, Simulation, Simulator, create_simulator, simulate
from mambaseg.datamodules.scribbles.simulators import Boxes, Points, Scribbles, Slices

__all__ = [
    "SIMULATORS",
    "Boxes",
    "Coverage",
    "Points",
    "Scribbles",
    "Simulation",
    "Simulator",
    "Slices",
    "create_simulator",
    "measure_coverage",
    "simulate",
]
