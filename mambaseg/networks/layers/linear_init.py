"""How the networks on patches draw their linear layers."""

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Draw a linear layer's weight from a truncated normal of deviation 0.02 and zero its bias; leave others alone.

    For ``nn.Module.apply``.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
