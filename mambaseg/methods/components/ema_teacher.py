"""A slow copy of the students that makes steadier pseudo-labels."""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mambaseg.inference.slices import full_size

LOSS_MEMORY = 0.95
"""Share of the old running loss that a step keeps."""


class EmaTeacher(nn.Module):
    """Exponential moving averages of the students; their weighted mean probability is the teacher's word.

    Mean teacher, https://arxiv.org/abs/1703.01780, over several networks. Buffers (batch-norm statistics) are averaged
    like weights, and the teacher puts itself into evaluation mode to predict: in training mode it would see other
    statistics than its weights were averaged for. The decay starts low, so that the first random weights are soon
    forgotten. ``norm: batch`` keeps one thing of training mode: batch norm takes the statistics of the images at hand.

    Args:
        students: The networks to follow.
        decay: Share of the old average that a step keeps, once warm.
        trust: How much more a student counts that does better on labelled pixels: shares are the softmax of ``-trust``
            times the running supervised loss. 0 counts all alike. A network that has hardly learned yet should not
            teach one that has.
        norm: What batch norm normalises with in a prediction: ``running`` averages of what the students saw, labelled
            images included, or the statistics of the ``batch``. The latter suits unlabelled images of other scanners
            than the labelled ones.
    """

    step: Tensor
    loss: Tensor

    def __init__(
        self,
        students: Mapping[str, nn.Module],
        decay: float,
        trust: float = 0.0,
        norm: Literal["running", "batch"] = "running",
    ) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EmaTeacher: decay is {decay}; it must be in [0, 1).")
        self.decay = decay
        self.trust = trust
        self.norm = norm
        self.averages = nn.ModuleDict({name: copy.deepcopy(network) for name, network in students.items()})
        self.averages.requires_grad_(False)
        for layer in self._batch_norms() if norm == "batch" else ():
            # Its running statistics stay the average of the students', whatever it predicts.
            layer.momentum = 0.0
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("loss", torch.zeros(len(students)))

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
    def hear(self, supervised: Mapping[str, Tensor]) -> None:
        """Note how well each student does on labelled pixels: its supervised loss, a scalar, averaged over steps."""
        now = torch.stack([supervised[name].detach().float() for name in self.averages])
        seen = self.step > 0
        self.loss.copy_(torch.where(seen, self.loss.lerp(now, 1 - LOSS_MEMORY), now))

    def shares(self) -> Tensor:
        """Return each average's share in the teacher's word, (students,), summing to 1."""
        return torch.softmax(-self.trust * self.loss, dim=0)

    @torch.no_grad()
    def words(self, image: Tensor) -> list[Tensor]:
        """Return each average's probability (B, K, *S) on ``image`` (B, C, *S)."""
        if self.training:
            self.eval()
            for layer in self._batch_norms() if self.norm == "batch" else ():
                layer.train()
        return [full_size(network(image)).float().softmax(1) for network in self.averages.values()]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the averages' probability (B, K, *S) on ``image`` (B, C, *S), weighted by their shares."""
        return torch.einsum("n,n...->...", self.shares(), torch.stack(self.words(image)))

    def _batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return [layer for layer in self.averages.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
