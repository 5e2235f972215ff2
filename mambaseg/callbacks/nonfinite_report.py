"""Finding where in the networks a number stopped being one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mambaseg.io.atomic import write_bytes
from mambaseg.losses.over_processes import own_samples_alone, processes


def describe_nonfinite(module: pl.LightningModule, batch: Any, batch_idx: int) -> str | None:
    """Repeat the forward pass of a batch and say what is not finite first: the batch, a weight, a module or a term.

    Losses are repeated for this process's samples alone. None where those are sound: then another process's are not.

    Args:
        module: A ``CoTrainingModule``; of others only batch and weights are looked at.
        batch: The batch as it was trained on.
        batch_idx: Its number, from which such a module seeds its random numbers.
    """
    cases = ", ".join(batch["case_id"]) if isinstance(batch, dict) and "case_id" in batch else "unknown cases"
    for name, value in batch.items() if isinstance(batch, dict) else ():
        if name.startswith("image") and not bool(torch.isfinite(value).all()):
            return f"The batch's own {name} is not finite (cases {cases}): repair the data."
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"The weight {name} was not finite before this step."
    if any(isinstance(part, FSDPModule) for part in module.modules()):
        return "Where it began is not looked for in sharded networks: the other processes would have to join in."
    if not hasattr(module, "training_outputs") or not hasattr(module, "training_losses"):
        return "Where it began is unknown for this kind of module."
    method = cast(Any, module)
    found: list[str] = []
    handles = [part.register_forward_hook(_watch(name, found)) for name, part in module.named_modules() if name]
    try:
        with torch.no_grad(), method.plain_passes(), own_samples_alone():
            method.on_train_batch_start(batch, batch_idx)
            outputs = method.training_outputs(batch)
            terms = {} if found else method.training_losses(batch, outputs)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"{found[0]} (cases {cases})."
    bad = [name for name, term in terms.items() if not bool(torch.isfinite(term).all())]
    if not bad and processes() > 1:
        return None
    return f"Every module's output is finite; these terms of the loss are not: {', '.join(bad) or 'none'} ({cases})."


def save_batch(batch: Any, path: Path, about: dict[str, str]) -> None:
    """Save the tensors of a batch, and its case names with what else is known in the header.

    Args:
        batch: The batch.
        path: The file, safetensors.
        about: For the header.

    Raises:
        OSError: It cannot be written.
    """
    items = dict(batch) if isinstance(batch, Mapping) else {}
    tensors = {name: value.detach().cpu().contiguous() for name, value in items.items() if isinstance(value, Tensor)}
    header = about | {"case_id": "\n".join(items.get("case_id", []))}
    write_bytes(path, save(tensors, metadata=header))


def _watch(name: str, found: list[str]) -> Any:
    """Return a hook that notes the module if it is the first with a non-finite output."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if found or all(bool(torch.isfinite(t).all()) for t in _tensors(output)):
            return
        largest = max((float(t.abs().max()) for t in _tensors(inputs) if t.numel()), default=float("nan"))
        found.append(
            f"The first module with a non-finite output is {name} ({type(module).__name__}), whose input reached "
            f"{largest:.3g}"
        )

    return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in an output, however it is nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
