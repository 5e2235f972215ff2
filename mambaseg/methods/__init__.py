"""Training methods: one file each, all of them ``CoTrainingModule`` subclasses."""

from mambaseg.methods.cotraining import CoTrainingModule
from mambaseg.methods.semi_mamba_unet import SemiMambaUNet
from mambaseg.methods.supervised import Supervised

__all__ = ["CoTrainingModule", "SemiMambaUNet", "Supervised"]
