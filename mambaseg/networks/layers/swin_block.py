"""The Swin block: attention within windows, every other time within shifted ones (https://arxiv.org/abs/2103.14030)."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.drop_path import DropPath
from mambaseg.networks.layers.layer_norm import LayerNorm


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window, with a learned bias for every relative position.

    Loading a table that was learned for another window size resizes it; published files also carry its index, which is
    known here already and ignored.

    Args:
        dim: Channels.
        window: Side of a window in tokens.
        heads: Attention heads.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_load_state_dict_pre_hook(_adapt_table)  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, n, w², C) of the ``tokens`` (B, n, w², C) of n windows.

        Args:
            tokens: As above.
            mask: (n, w², w²) bool, whether a token (second axis) may see another (third axis). None: all may.
        """
        windows = tokens.shape[1]
        # Windows count as heads: then one bias serves the whole batch, and the fused kernels take it without a copy.
        query, key, value = rearrange(self.qkv(tokens), "b n t (k h c) -> k b (n h) t c", k=3, h=self.heads)
        bias = self._bias(windows, mask).flatten(0, 1)[None].to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed: Tensor = self.proj(rearrange(out, "b (n h) t c -> b n t (h c)", n=windows))
        return mixed

    def _bias(self, windows: int, mask: Tensor | None) -> Tensor:
        """Return what is added to the attention logits, (n, heads, w², w²)."""
        count = self.window**2
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = table.view(count, count, self.heads).permute(2, 0, 1).expand(windows, -1, -1, -1)
        return bias if mask is None else bias.masked_fill(~mask[:, None], float("-inf"))


class SwinBlock(Block):
    """x + DropPath(WindowAttention(LayerNorm(x))), then the same with an MLP.

    Maps of any size are padded to whole windows; no token sees the padding. An axis that one window covers is not
    shifted.

    Args:
        dim: Channels.
        heads: Attention heads.
        window: Side of a window in tokens.
        shift: How far the windows are shifted, in tokens; 0 for plain windows.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        drop_path: Rate of stochastic depth.
    """

    def __init__(
        self, dim: int, heads: int, window: int = 7, shift: int = 0, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)
        self.register_load_state_dict_pre_hook(_drop_attn_mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of ``x`` (B, H, W, C)."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        window, (height, width) = self.window, x.shape[1:3]
        rows, columns = (-(-length // window) for length in (height, width))
        shift = tuple(self.shift if length > window else 0 for length in (height, width))
        padded = (rows * window - height, columns * window - width)
        mask = window_mask((height, width), window, (shift[0], shift[1]), x.device) if any(padded + shift) else None
        x = F.pad(x, (0, 0, 0, padded[1], 0, padded[0])) if any(padded) else x
        x = x.roll((-shift[0], -shift[1]), dims=(1, 2)) if any(shift) else x
        tokens = rearrange(x, "b (r i) (s j) c -> b (r s) (i j) c", i=window, j=window)
        x = rearrange(self.attn(tokens, mask), "b (r s) (i j) c -> b (r i) (s j) c", r=rows, i=window)
        x = x.roll(shift, dims=(1, 2)) if any(shift) else x
        return x[:, :height, :width]


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) of ``x`` (..., C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for every pair of a window's tokens, (w², w²) int64.

    The table's rows run over (row distance, column distance) of query minus key, each from 1 - w to w - 1.
    """
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = (axis.flatten()[:, None] - axis.flatten() + window - 1 for axis in (row, column))
    return rows * (2 * window - 1) + columns


def window_mask(size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    """Return which tokens of a window see each other, (n, w², w²) bool.

    Shifting is done by rolling, so that the last windows hold tokens of both ends of the map; those are strangers, and
    so is the padding.

    Args:
        size: Height and width of the map in tokens, before padding.
        window: Side of a window in tokens.
        shift: Shift along height and width.
        device: Where the mask is made.
    """
    groups = []
    for length, offset in zip(size, shift, strict=True):
        padded = -(-length // window) * window
        place = (torch.arange(padded, device=device) + offset) % padded
        group = (place - offset).div(window, rounding_mode="floor")
        groups.append(group.masked_fill(place >= length, -2).view(-1, window))
    row = groups[0][:, None, :, None].expand(-1, len(groups[1]), -1, window).reshape(-1, window * window)
    column = groups[1][None, :, None, :].expand(len(groups[0]), -1, window, -1).reshape(-1, window * window)
    return (row[:, :, None] == row[:, None]) & (column[:, :, None] == column[:, None])


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Return a table of relative-position biases for another window, by bicubic interpolation over the distances.

    Args:
        table: ((2v - 1)², heads), learned for windows of v tokens a side.
        window: The wanted side w.

    Returns:
        ((2w - 1)², heads).
    """
    old, new = round(table.shape[0] ** 0.5), 2 * window - 1
    grid = table.T.reshape(1, -1, old, old).float()
    resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, new * new).T.to(table.dtype)


def _adapt_table(module: WindowAttention, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.pop(f"{prefix}relative_position_index", None)
    key = f"{prefix}relative_position_bias_table"
    if key in state and state[key].shape[0] != module.relative_position_bias_table.shape[0]:
        state[key] = resize_bias_table(state[key], module.window)


def _drop_attn_mask(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Ignore the masks that published files carry for one input size; they are made for the size at hand."""
    state.pop(f"{prefix}attn_mask", None)
