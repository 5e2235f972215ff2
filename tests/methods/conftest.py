import pytest
import torch

from mambaseg.methods.components.optimizers import OptimizerConfig, StudentConfig


@pytest.fixture
def students():
    return {
        "cnn": StudentConfig("unet", {"channels": [4, 6, 8, 10, 12]}),
        "mamba": StudentConfig(
            "mamba_unet",
            {"embed_dim": 8, "depths": [1, 1], "d_state": 2},
            optimizer=OptimizerConfig("adamw", 1e-3, decay_vectors=False),
        ),
    }


@pytest.fixture
def batch():
    """Two dense slices and two of which nothing is known."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (4, 24, 20), generator=generator)
    audit = label.clone()
    label[2:] = 255
    return {
        "image": torch.rand(4, 1, 24, 20, generator=generator),
        "label": label,
        "supervision": torch.tensor([2, 2, 0, 0]),
        "case_id": ["a", "b", "c", "d"],
        "spacing_mm": [(float("nan"),) * 2] * 4,
        "audit_label": audit,
    }
