"""A slow copy of the students that makes steadier pseudo-labels."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mambaseg.errors import InputError
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
        self._updates: int | None = 0
        self.register_load_state_dict_post_hook(_forget_updates)  # type: ignore[no-untyped-call]
        self.register_buffer("loss", torch.zeros(len(students)))

    def check_precision(self) -> None:
        """Refuse averages that cannot move: a step's change is below half precision.

        Raises:
            InputError: They are float16 or bfloat16.
        """
        dtype = next(self.averages.parameters()).dtype
        if dtype in (torch.float16, torch.bfloat16):
            mixed = "bf16-mixed" if dtype == torch.bfloat16 else "16-mixed"
            raise InputError(
                f"trainer.precision keeps the weights in {dtype}, in which an EMA teacher's averages stand still: set "
                f"trainer.precision to {mixed}, or model.init_args.cross.teacher to partner."
            )

    @torch.no_grad()
    def update(self, students: Mapping[str, nn.Module]) -> None:
        """Move the averages towards the students' present weights and buffers."""
        if self._updates is None:
            self._updates = int(self.step)  # waits for the GPU, so once
        self._updates += 1
        self.step += 1
        keep = min(1 - 1 / (self._updates + 1), self.decay)
        for name, student in students.items():
            average = self.averages[name]
            torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - keep)
            for mine, theirs in zip(average.buffers(), student.buffers(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - keep)
                else:
                    mine.copy_(theirs)

    @torch.no_grad()
    def hear(self, supervised: Mapping[str, Tensor]) -> None:
        """Note how well each student does on labelled pixels: its supervised loss, a scalar, averaged over steps."""
        now = torch.stack([supervised[name].detach() for name in self.averages]).to(self.loss.dtype)
        heard = torch.where(self.step > 0, self.loss.lerp(now, 1 - LOSS_MEMORY), now)
        # A step that is not finite is left out or ends the training: it must not stay in mind either way.
        self.loss.copy_(torch.where(now.isfinite(), heard, self.loss))

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


def _forget_updates(teacher: EmaTeacher, _: Any) -> None:
    """Let the next update read the step that was loaded."""
    teacher._updates = None
