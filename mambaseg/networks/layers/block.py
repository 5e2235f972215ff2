"""What is gathered at a time in sharded training."""

from torch import nn


class Block(nn.Module):
    """A part of a network that is entered by its ``forward`` alone, and whose weights nothing outside it reads.

    Sharded training gathers a large block's weights where its ``forward`` begins, and frees them where it ends. What
    lies in no block is gathered from the network's forward to its backward pass: always right, but it takes memory.
    """
