"""Count the bytes that a network's operators read and write under bf16 autocast. No GPU is needed: shapes say it.

    python benchmarks/networks/traffic.py vmamba_tiny_s1l8 mamba_unet [--training]

An operator moves its inputs and outputs once each, an expanded tensor what lies in memory; views move nothing. Caches
and what happens inside an operator are not seen. Two batch sizes tell what is moved for an image from what is moved for
the weights. Norms run as on a GPU: ours where networks take them there, the others in fp32 between two casts.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mambaseg.networks import create_network
from mambaseg.networks.cost import EXAMPLES
from mambaseg.networks.layers import conv_norm, layer_norm, ss2d
from mambaseg.networks.register import TASKS

COUNTED_SIZE, SIZE = 128, 224
"""Side of the images that are run, a quarter of the work, and that the figures are scaled to."""
SHOWN = 8
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "alias"}


class Traffic(TorchDispatchMode):
    """Adds up bytes and calls by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        inputs, outputs = ([t for t in tree_leaves(part) if isinstance(t, Tensor)] for part in ((args, kwargs), result))
        is_view = function._schema.name != "aten::copy_" and any(r.alias_info for r in function._schema.returns)
        if name in ALLOCATIONS or is_view or name == "_unsafe_view":
            return result
        self.calls[name] += 1
        self.moved[name] += sum(map(bytes_of, inputs + outputs))
        if name == "native_layer_norm" and not inputs[0].is_contiguous():
            self.moved[name] += 2 * bytes_of(inputs[0])  # it copies first
        return result


class NormInFloat32(TorchFunctionMode):
    """Does for ``layer_norm`` what autocast does on a GPU."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.layer_norm and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def bytes_of(tensor: Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


def count(name: str, batch: int, training: bool) -> Traffic:
    """Return the traffic of one pass over a batch."""
    in_channels, num_classes = EXAMPLES[TASKS[name]]
    torch.manual_seed(0)
    network = create_network(name, in_channels, num_classes).train(training)
    images = torch.randn(batch, in_channels, COUNTED_SIZE, COUNTED_SIZE)
    with Traffic() as traffic, torch.set_grad_enabled(training):
        with NormInFloat32(), torch.autocast("cpu", torch.bfloat16):
            outputs = network(images)
            loss = sum(logits.float().mean() for logits in (outputs if isinstance(outputs, list) else [outputs]))
        if training:
            loss.backward()
    return traffic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NETWORK")
    parser.add_argument("--training", action="store_true", help="a forward and backward pass instead of a forward pass")
    arguments = parser.parse_args()
    for module in (conv_norm, layer_norm, ss2d):
        module.on_own_kernels = lambda _: True  # type: ignore[attr-defined]
    for name in arguments.names:
        two, four = (count(name, batch, arguments.training) for batch in (2, 4))
        scale = (SIZE / COUNTED_SIZE) ** 2 / 2e6
        per_image = {operator: (four.moved[operator] - two.moved[operator]) * scale for operator in four.moved}
        weights = 2 * sum(two.moved.values()) - sum(four.moved.values())
        print(
            f"{name}: {sum(two.calls.values())} operators, {sum(per_image.values()):.0f} MB an image, "
            f"{weights / 1e6:.0f} MB a pass for weights"
        )
        for operator in sorted(per_image, key=lambda operator: -per_image[operator])[:SHOWN]:
            print(f"    {operator:<28}{two.calls[operator]:>5} calls {per_image[operator]:>8.1f} MB an image")


if __name__ == "__main__":
    main()
