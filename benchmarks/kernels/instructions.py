"""Count what the scan kernels issue: registers, and the instructions of their loops. Needs Triton, but no GPU.

    python benchmarks/kernels/instructions.py

Compiles for Hopper (sm_90) with the plans that the library chooses and reads the machine code. A loop is what lies
between a backward branch and its target. A block of the forward pass is one turn of its largest loop; a block of the
backward pass is one turn of the loop over blocks, in which a chunk's states are recomputed (the loop inside, and what
precedes it) once a chunk. ``floors.py`` holds the counts per channel and step.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mambaseg.kernels.launch import WARP
from mambaseg.kernels.selective_scan.op import GPU_CHUNK
from mambaseg.kernels.selective_scan.triton_backward import selective_scan_bwd_kernel
from mambaseg.kernels.selective_scan.triton_forward import selective_scan_fwd_kernel
from mambaseg.kernels.selective_scan.triton_launch import Plan, choose_plan

SIZES = {"rows": 24 * 4, "length": 3136, "channels": 192, "d_state": 16, "rank": 0, "chunk": GPU_CHUNK}
NARROW = ("u", "delta", "B", "C", "out", "grad_out", "grad_u", "grad_delta", "weight")
"""Tensors of the activations' type; the others are float32."""
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
INSTRUCTION_BYTES = 16


@dataclass(frozen=True)
class Loop:
    """A loop in machine code: first and last address, and instructions by kind."""

    first: int
    last: int
    instructions: int
    exponentials: int
    exchanges: int

    def holds(self, other: "Loop") -> bool:
        """Whether another loop lies inside."""
        return self is not other and self.first <= other.first and other.last <= self.last


def compiled(kernel: Any, dtype: str, plan: Plan) -> str:
    """Compile a kernel as ``triton_launch`` does, and return its machine code and use of registers as text."""
    constants = {
        "N": 16, "BLOCK_N": 16, "RANK": 0, "BLOCK_R": 0, "ORDER": 0, "CHUNK": GPU_CHUNK, "STEPS": plan.steps,
        "CHANNELS": plan.channels, "SPLIT": plan.split, "HAS_D": True, "HAS_BIAS": True, "SOFTPLUS": True,
        "HAS_GRAD_LAST": False, "WIDE": False, "PREFETCH": True,
    }  # fmt: skip
    given = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, multiples_of_16 = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in given:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = f"*{dtype}" if name.removesuffix("_ptr") in NARROW else "*fp32"
        else:
            signature[name] = "i32"
        if name.endswith(("_ptr", "_batch", "_step", "_group")) or name == "channels":
            multiples_of_16[(index,)] = [["tt.divisibility", 16]]
    by_index = {(kernel.arg_names.index(name),): value for name, value in given.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=by_index, attrs=multiples_of_16)
    options = {"num_warps": 1} | ({"maxnreg": plan.registers} if plan.registers else {})
    binary = triton.compile(source, target=GPUTarget("cuda", 90, WARP), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        dumps = [
            subprocess.run([TOOL, flag, file.name], capture_output=True, text=True) for flag in ("-res-usage", "-sass")
        ]
    return "".join(dump.stdout + dump.stderr for dump in dumps)


def loops(code: str) -> list[Loop]:
    """Return the loops of machine code, largest first."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", code, re.MULTILINE)
    instructions = [(int(address, 16), text) for address, text in lines]
    found = []
    for last, text in instructions:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < last:
            body = [text for address, text in instructions if int(target[1], 16) <= address <= last]
            kinds = (sum(kind in text for text in body) for kind in ("MUFU", "SHFL"))
            found.append(Loop(int(target[1], 16), last, len(body), *kinds))
    return sorted(found, key=lambda loop: -loop.instructions)


def per_channel_step(found: list[Loop], plan: Plan) -> float:
    """Return the warp instructions that a block takes, over its channels and steps."""
    block = found[0]
    instructions = float(block.instructions)
    for inner in (loop for loop in found if block.holds(loop)):
        before = (inner.first - block.first) // INSTRUCTION_BYTES
        blocks = GPU_CHUNK // plan.steps
        once_a_chunk = inner.instructions * (blocks - 1) + before
        instructions += once_a_chunk / blocks - inner.instructions - before
    return instructions / (WARP // plan.split * plan.channels * plan.steps)


def main() -> None:
    """Print a line a kernel and type."""
    for mode, kernel in (("forward", selective_scan_fwd_kernel), ("backward", selective_scan_bwd_kernel)):
        plan = choose_plan(**SIZES, backward=mode == "backward")
        for dtype in ("fp32", "bf16"):
            code = compiled(kernel, dtype, plan)
            found = loops(code)
            usage = " ".join(re.findall(r"(?:REG|STACK):\d+", code))
            print(
                f"{mode:9}{dtype:5} {plan.split}x{plan.channels}x{plan.steps} {usage}: "
                f"{per_channel_step(found, plan):.1f} instructions a channel and step; loop of "
                f"{found[0].instructions} with {found[0].exponentials} exponentials, {found[0].exchanges} exchanges",
                flush=True,
            )


if __name__ == "__main__":
    main()
