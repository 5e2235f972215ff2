"""A module's copies in several processes, kept alike by fewer and larger messages than DDP sends."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mambaseg.methods.components.ema_teacher import EmaTeacher
from mambaseg.methods.components.gradient_average import average_gradients
from mambaseg.methods.components.student_graphs import StudentGraphs
from mambaseg.one_message import share_buffers


class Replicas:
    """Averages gradients and shares buffers between processes, in place of DDP.

    DDP sends gradients in pieces while a backward pass makes them. A recorded backward pass hands all of them over at
    its end, and then DDP's way is a copy for each parameter. It also sends all buffers (batch-norm statistics) before
    every forward pass, and waits for them; but training reads none, unless a teacher does.

    What training computes is what DDP computes: means of gradients, and the buffers of the first process.

    Args:
        ddp: DDP's wrapper, whose own averaging is switched off for the steps that this takes over.
        module: What it wraps.
        graphs: The recorded passes.
    """

    def __init__(self, ddp: DistributedDataParallel, module: nn.Module, graphs: StudentGraphs) -> None:
        self.ddp = ddp
        self.module = module
        self.graphs = graphs
        # Once: to walk through modules takes the host longer than to send what they hold.
        self._parameters = list(module.parameters())
        self.buffers_are_read = any(isinstance(part, EmaTeacher) for part in module.modules())
        self.takes_over = False

    def start_step(self, takes_over: bool) -> None:
        """Begin a training step.

        Args:
            takes_over: Whether its gradients are averaged here; otherwise DDP does.
        """
        self.takes_over = takes_over
        self.ddp.require_backward_grad_sync = not takes_over
        if takes_over and self.buffers_are_read:
            self.share_buffers()

    def average(self) -> None:
        """Average the step's gradients, if it was taken over."""
        if self.takes_over:
            average_gradients([p for p in self._parameters if p.requires_grad], self.graphs.gathered)

    def share_buffers(self) -> None:
        """Give every process the buffers of the first one."""
        share_buffers(self.module)
