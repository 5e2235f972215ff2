"""What follows the scan in a VSS block, fused: merge of directions, LayerNorm, gate; README.md has its mathematics."""

from mambaseg.kernels.norm_gate.interface import layer_norm, merge_norm_gate
from mambaseg.kernels.norm_gate.reference import layer_norm_reference, merge_norm_gate_reference

__all__ = ["layer_norm", "layer_norm_reference", "merge_norm_gate", "merge_norm_gate_reference"]
