"""Batch norm in training and the LeakyReLU behind it, fused; README.md has its mathematics."""

from mambaseg.kernels.batch_norm_act.interface import batch_norm_act
from mambaseg.kernels.batch_norm_act.reference import batch_norm_act_reference
from mambaseg.kernels.batch_norm_act.running import RunningStatistics

__all__ = ["RunningStatistics", "batch_norm_act", "batch_norm_act_reference"]
