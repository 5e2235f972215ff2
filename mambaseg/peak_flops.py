"""What GPUs could compute a second at most, by their makers' data sheets: the denominator of MFU."""

import re
from typing import Literal

import torch

Arithmetic = Literal["bf16", "tf32", "fp32"]

# Dense TFLOP/s of bf16 and tf32 on the tensor cores, and of fp32 on the others; None where there is no such unit.
PEAKS: dict[str, tuple[float | None, float | None, float]] = {
    "B200": (2250.0, 1125.0, 75.0),
    "H200 NVL": (835.5, 417.5, 60.0),
    "H200": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A30": (165.0, 82.0, 10.3),
    "A10": (125.0, 62.5, 31.2),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "RTX 6000 Ada Generation": (364.2, 182.1, 91.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
    "V100": (None, None, 15.7),
    "T4": (None, None, 8.1),
}
"""By a part of the name that ``torch.cuda.get_device_name`` gives; longer names stand before those that they hold."""
SLICES = re.compile(r"\b(MIG|Laptop|Max-Q|D)\b")
"""What makes a GPU slower than its name says."""


def arithmetic_of(precision: str) -> Arithmetic:
    """Return what a trainer's ``precision`` multiplies in; fp32 means TF32 where torch lets any product use it.

    By default torch lets convolutions, and not matrix products.
    """
    if "16" in precision:
        return "bf16"
    tf32 = torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 else "fp32"


def peak_flops(device_name: str, arithmetic: Arithmetic) -> float | None:
    """Return the peak of a GPU in FLOP/s, or None for one that is not in the table.

    Args:
        device_name: As ``torch.cuda.get_device_name`` gives it.
        arithmetic: What is multiplied.
    """
    if SLICES.search(device_name):
        return None
    for name, (bf16, tf32, fp32) in PEAKS.items():
        if re.search(rf"\b{re.escape(name)}\b", device_name):
            tera = {"bf16": bf16, "tf32": tf32 or fp32, "fp32": fp32}[arithmetic]
            return None if tera is None else tera * 1e12
    return None
