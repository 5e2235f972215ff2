"""A slow copy of the students that makes steadier pseudo-labels."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EmaTeacher(nn.Module):
    """Exponential moving averages of the students; their mean probability is the teacher's word.

    Mean teacher, https://arxiv.org/abs/1703.01780, over several networks. Buffers (batch-norm statistics) are averaged
    like weights, and the teacher predicts in evaluation mode: a teacher in training mode would see other statistics
    than its weights were averaged for. The decay starts low, so that the first random weights are soon forgotten.

    Args:
        students: The networks to follow.
        decay: Share of the old average that a step keeps, once warm.
    """

    step: Tensor

    def __init__(self, students: Mapping[str, nn.Module], decay: float) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EmaTeacher: decay is {decay}; it must be in [0, 1).")
        self.decay = decay
        self.averages = nn.ModuleDict({name: copy.deepcopy(network) for name, network in students.items()})
        self.averages.requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.eval()

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stay in evaluation mode whatever the trainer asks for."""
        return super().train(False)

    @torch.no_grad()
    def update(self, students: Mapping[str, nn.Module]) -> None:
        """Move the averages towards the students' present weights and buffers."""
        self.step += 1
        keep = torch.minimum(1 - 1 / (self.step + 1.0), torch.tensor(self.decay, device=self.step.device))
        for name, student in students.items():
            theirs = student.state_dict()
            for key, mine in self.averages[name].state_dict().items():
                if mine.is_floating_point():
                    mine.lerp_(theirs[key].to(mine.dtype), (1 - keep).to(mine.dtype))
                else:
                    mine.copy_(theirs[key])

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the mean probability (B, K, *S) of the averages on ``image`` (B, C, *S)."""
        return torch.stack([network(image).float().softmax(1) for network in self.averages.values()]).mean(0)
