"""One decoding step of the selective scan; see README.md for its mathematics."""

from mambaseg.kernels.selective_state_update.interface import selective_state_update
from mambaseg.kernels.selective_state_update.reference import selective_state_update_reference

__all__ = ["selective_state_update", "selective_state_update_reference"]
