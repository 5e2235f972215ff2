"""The seed of what a training step draws."""

import torch


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what a step on ``device``, the current one of its kind, draws from: its generator and the CPU's.

    ``torch.manual_seed`` does this for every kind of device, and for each kind that is not in use it notes down the
    stack of calls: 0.1 ms and more of the host's time in every step.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
