"""Training methods: one file each, all of them ``CoTrainingModule`` subclasses."""

from mambaseg.methods.cotraining import CoTrainingModule
from mambaseg.methods.mixed_mamba_unet import MixedMambaUNet
from mambaseg.methods.semi_mamba_unet import SemiMambaUNet
from mambaseg.methods.supervised import Supervised
from mambaseg.methods.weak_mamba_unet import WeakMambaUNet

__all__ = ["CoTrainingModule", "MixedMambaUNet", "SemiMambaUNet", "Supervised", "WeakMambaUNet"]
