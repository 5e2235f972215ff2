"""How the convolutional networks draw their convolutions."""

from torch import nn

LEAKY_SLOPE = 0.01
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def init_conv(module: nn.Module) -> None:
    """Draw a convolution from He's normal for LeakyReLU, bias 0; leave depthwise ones and other layers alone.

    For ``nn.Module.apply``.
    """
    if isinstance(module, CONVOLUTIONS) and module.groups == 1:
        init_conv_of_any_kind(module)


def init_conv_of_any_kind(module: nn.Module) -> None:
    """Draw a convolution, depthwise ones included, as ``init_conv`` does; leave other layers alone."""
    if isinstance(module, CONVOLUTIONS):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
