"""What bounds each operator from below: the bytes, exponentials and instructions that its definition needs.

Bytes count every input once and every result once, whatever caches do; exponentials and their like are results of the
special-function units; instructions are those that the kernels issue, where somebody has counted them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
GPU_CHUNK = 64
"""Steps between the states that a forward pass of the scan keeps."""
SCAN_INSTRUCTIONS = {("forward", 4): 6.3, ("forward", 2): 6.7, ("backward", 4): 18.6, ("backward", 2): 20.0}
"""Warp instructions a channel and step at N = 16, by pass and bytes of the type: what ``instructions.py`` prints."""
DATASHEET_TB_PER_S = {"H100": 3.35, "H200": 4.8}


@dataclass(frozen=True)
class Work:
    """What a call has to do.

    Attributes:
        moved: Bytes to and from memory.
        exponentials: Results of the special-function units.
        instructions: Warp instructions; 0 where unknown.
    """

    moved: float
    exponentials: float = 0.0
    instructions: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.moved + other.moved,
            self.exponentials + other.exponentials,
            self.instructions + other.instructions,
        )


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU.

    Attributes:
        bytes_per_s: Of a copy, reads and writes together.
        multiprocessors: Each issues four warp instructions and 16 exponentials a clock.
        clock_hz: At its highest.
    """

    bytes_per_s: float
    multiprocessors: int = 132
    clock_hz: float = 1.98e9

    def floors_ms(self, work: Work) -> dict[str, float]:
        """Return the least time that each kind of work takes; what is unknown or absent is left out."""
        cycles = self.multiprocessors * self.clock_hz
        floors = {
            "bytes": work.moved / self.bytes_per_s,
            "exponentials": work.exponentials / (16 * cycles),
            "instructions": work.instructions / (4 * cycles),
        }
        return {kind: seconds * 1e3 for kind, seconds in floors.items() if seconds}


def work(kernel: str, mode: str, dtype: str, shape: str) -> Work:
    """Return the work of a row of bench.csv, blocks.csv or sweep.csv.

    Args:
        kernel: The operator, with the number of directions behind ``norm_gate`` and ``merge_norm``.
        mode: forward, forward_saving, backward, or training for the last two.
        dtype: Of the activations.
        shape: As the row shows it.

    Raises:
        KeyError: Nobody has counted this operator.
    """
    if mode == "training":
        return work(kernel, "forward_saving", dtype, shape) + work(kernel, "backward", dtype, shape)
    count = COUNTS[kernel.split()[0]]
    numbers = [int(digits) for digits in re.findall(r"\b\d+\b", kernel.partition(" ")[2] + shape)]
    return count(mode, SIZE[dtype], *numbers)


def scan(mode: str, size: int, batch: int, groups: int, channels: int, height: int, width: int, d_state: int) -> Work:
    """Count the selective scan of u and delta (batch, L, G, D) with N states.

    Forward: u, delta and y, 3 B L G D values, and rows of B and C, 2 B L G N; to save states also B G D N ceil(L/64)
    float32 values. Backward: u, delta, dy, du and ddelta, rows of B, C, dB and dC, and the states. Either way one
    exponential a state and step, the decay, and one a channel and step, the softplus.
    """
    length = height * width
    elements = batch * length * groups * channels
    rows = 2 * batch * length * groups * d_state
    states = 4 * batch * groups * channels * d_state * math.ceil(length / GPU_CHUNK)
    exponentials = elements * (d_state + 1)
    counted = SCAN_INSTRUCTIONS["backward" if mode == "backward" else "forward", size]
    instructions = elements * counted if d_state == 16 else 0
    if mode == "backward":
        return Work((5 * elements + 2 * rows) * size + states, exponentials, instructions)
    return Work((3 * elements + rows) * size + (states if mode == "forward_saving" else 0), exponentials, instructions)


def ss2d(mode: str, size: int, batch: int, channels: int, height: int, width: int, d_state: int) -> Work:
    """Count ``ss2d`` of a map (B, E, H, W): four scans that read one map.

    Forward: x and y, 2 B E L values, and what x is projected to, B L 4 (R + 2N) values with R = E/32, written and read.
    Backward: x, dy and dx, and the projections and their gradients, each written or read once. States as in ``scan``,
    and its exponentials and instructions, although making step sizes takes more.
    """
    length = height * width
    alike = scan(mode, size, batch, 4, channels, height, width, d_state)
    projections = batch * length * 4 * (channels // 32 + 2 * d_state)
    states = 4 * batch * 4 * channels * d_state * math.ceil(length / GPU_CHUNK)
    maps = (3 if mode == "backward" else 2) * batch * length * channels
    kept = 0 if mode == "forward" else states
    passes = 3 if mode == "backward" else 2
    return Work((maps + passes * projections) * size + kept, alike.exponentials, alike.instructions)


def causal_conv1d(mode: str, size: int, batch: int, steps: int, channels: int) -> Work:
    """Count the convolution of (B, L, D) with SiLU: x and y forward, x, dy and dx backward; exp and division."""
    elements = batch * steps * channels
    return Work((3 if mode == "backward" else 2) * elements * size, 2 * elements)


def depthwise_conv2d(mode: str, size: int, batch: int, height: int, width: int, channels: int) -> Work:
    """Count the convolution of (B, H, W, D) with SiLU: x and y forward, x, dy and dx backward; exp and division."""
    return causal_conv1d(mode, size, batch, height * width, channels)


def norm_gate(mode: str, size: int, directions: int, batch: int, steps: int, channels: int) -> Work:
    """Count merge, norm and gate of G directions (B, L, G, E).

    Forward: G scans, gate and result, and to train with G > 1 their sum. Backward: sum, gate and dy, and the gradients
    of sum and gate. An exponential and a division an element, for the gate.
    """
    elements = batch * steps * channels
    kept = mode == "forward_saving" and directions > 1
    passes = 5 if mode == "backward" else directions + 2 + kept
    return Work(passes * elements * size, 2 * elements)


def merge_norm(mode: str, size: int, directions: int, batch: int, steps: int, channels: int) -> Work:
    """Count the same without a gate, whose reading, gradient and exponentials fall away."""
    gated = norm_gate(mode, size, directions, batch, steps, channels)
    return Work(gated.moved - (2 if mode == "backward" else 1) * batch * steps * channels * size)


def layer_norm(mode: str, size: int, batch: int, steps: int, channels: int) -> Work:
    """Count the LayerNorm of a float32 stream (B, L, E), y of any type: x and y forward, x, dy and dx backward."""
    elements = batch * steps * channels
    return Work(elements * ((8 + size) if mode == "backward" else (4 + size)))


def softmax_sums(mode: str, size: int, batch: int, classes: int, height: int, width: int) -> Work:
    """Count the sums of the losses over logits (B, K, H, W): logits and int64 labels, backward the gradient too.

    An exponential a logit, and a pixel's division and, forward, logarithm.
    """
    pixels = batch * height * width
    passes = 2 if mode == "backward" else 1
    return Work(pixels * (passes * classes * size + 8), pixels * (classes + (1 if mode == "backward" else 2)))


def rms_scores(
    mode: str, size: int, batch: int, height: int, width: int, of_patch: int, channels: int, classes: int
) -> Work:
    """Count the scores of vectors (B, H, W, s², C), their lengths in float32: vectors, scores and logits, once each.

    Backward: vectors, scores and lengths, and the gradients of logits, vectors and scores.
    """
    pixels = batch * height * width * of_patch
    values = 2 * channels + 3 * classes if mode == "backward" else channels + 2 * classes
    return Work(pixels * (values * size + 4), 0 if mode == "backward" else pixels)


def bilinear_doubling(
    mode: str, size: int, batch: int, height: int, width: int, channels: int, skip_channels: int
) -> Work:
    """Count the doubling of a map (B, H, W, C) behind a skip (B, 2H, 2W, S): both and the joined map, once each.

    Backward: the doubled part of the joined map's gradient, and the gradient of x; that of the skip is there.
    """
    values = 5 * channels + (0 if mode == "backward" else 8 * skip_channels)
    return Work(batch * height * width * values * size)


def batch_norm_act(mode: str, size: int, batch: int, height: int, width: int, channels: int) -> Work:
    """Count batch norm and LeakyReLU of a map (B, H, W, C) in training: x and y forward, x, dy and dx backward.

    The second reading of x, and of dy, may come from a cache.
    """
    return Work((3 if mode == "backward" else 2) * batch * height * width * channels * size)


def causal_conv1d_update(mode: str, size: int, batch: int, _steps: int, channels: int) -> Work:
    """Count one step of the convolution, four taps: its state read and written, x and y; exp and division."""
    return Work(batch * channels * (2 * 4 + 2) * size, 2 * batch * channels)


def selective_state_update(mode: str, size: int, batch: int, _steps: int, channels: int) -> Work:
    """Count one step of the scan, N = 16: the float32 state, twice; x, dt, z and y; an exponential a state."""
    return Work(batch * channels * (2 * 16 * 4 + 4 * size), batch * channels * (16 + 3))


COUNTS: dict[str, Callable[..., Work]] = {
    "selective_scan": scan,
    "ss2d": ss2d,
    "causal_conv1d": causal_conv1d,
    "depthwise_conv2d": depthwise_conv2d,
    "norm_gate": norm_gate,
    "merge_norm": merge_norm,
    "layer_norm": layer_norm,
    "softmax_sums": softmax_sums,
    "rms_scores": rms_scores,
    "bilinear_doubling": bilinear_doubling,
    "batch_norm_act": batch_norm_act,
    "causal_conv1d_update": causal_conv1d_update,
    "selective_state_update": selective_state_update,
}
