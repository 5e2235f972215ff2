"""Students that are trained side by side: everything a method shares with every other."""

import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mambaseg.datamodules.batch import Batch, Supervision, kinds_of
from mambaseg.errors import InputError
from mambaseg.inference.slices import ENSEMBLE, SliceInference
from mambaseg.methods.components.ema_teacher import EmaTeacher
from mambaseg.methods.components.on_exception import OnException
from mambaseg.methods.components.optimizers import JointOptimizer, StudentConfig, build_optimizer, build_schedule
from mambaseg.methods.components.pseudo_label_quality import pseudo_label_quality
from mambaseg.methods.components.replicas import Replicas
from mambaseg.methods.components.seed_draws import seed_draws
from mambaseg.methods.components.student_graphs import StudentGraphs
from mambaseg.methods.components.student_output import StudentOutput
from mambaseg.metrics.case_scores import CaseScores
from mambaseg.metrics.headline import headline_metric, headline_predictor
from mambaseg.metrics.rows import OVERLAP_NAMES, VALUE_NAMES, CaseScore
from mambaseg.metrics.summary import PredictorSummary, summarize
from mambaseg.networks import SegmentationNetwork, create_network, list_networks, options_of

TASK = "task"
"""Where a checkpoint keeps what the data decided about the networks: the arguments that rebuild them without it."""
NORMALISATION = "normalisation"
"""Where it keeps how the images' intensities were scaled."""


class CoTrainingModule(L.LightningModule, ABC):
    """Networks that learn together from whatever each sample's label map tells.

    A method is a subclass with ``training_losses``. Optimizers, schedules, logging, validation of every student and of
    their ensemble, and testing are here; clipping, accumulation, mixed precision and DDP are Lightning's own.

    Args:
        students: The networks by name, each with its optimizer and schedule.
        num_classes: Classes, background included; set from the data.
        in_channels: Channels of the images; set from the data.
        class_names: Names of the classes, background first; set from the data.
        inference: How whole volumes are segmented.
        surface_in_fit: Compute surface distances in the validation runs of ``fit`` too; ``validate`` and ``test``
            always do.
        strong_view: Learn on the strongly augmented view of each image; needs a transform that gives two views, such as
            ``weak_strong``.
        split_batch: Pass the labelled and the unlabelled part of a batch through the networks one after the other, so
            that batch norm sees each by itself. In small batches from several scanners the unlabelled part shifts the
            statistics that the labels are learned under: on the phantom that cost the U-Net 0.08 Dice (one seed). The
            published code passes both together.
        cuda_graphs: On a GPU, record the students' passes as CUDA graphs and replay them, side by side. The results are
            the same. Plain passes run with gradient accumulation, in sharded students, and in those that recompute
            activations (``checkpointing``) or synchronise batch norm.

    Raises:
        InputError: There is no student, or one is called like the ensemble.
    """

    def __init__(
        self,
        students: dict[str, StudentConfig],
        num_classes: int = 4,
        in_channels: int = 1,
        class_names: list[str] | None = None,
        inference: SliceInference = SliceInference(),  # noqa: B008  frozen, so sharing it is safe
        surface_in_fit: bool = False,
        strong_view: bool = False,
        split_batch: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__()
        if not students or ENSEMBLE in students:
            raise InputError(f"students is {sorted(students)}: name at least one, and none of them {ENSEMBLE!r}.")
        self.student_configs = students
        self.students = nn.ModuleDict(
            {name: build_student(name, config, in_channels, num_classes) for name, config in students.items()}
        )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.class_names = tuple(class_names or ["background", *(f"class{i}" for i in range(1, num_classes))])
        self.inference = inference
        self.surface_in_fit = surface_in_fit
        self.strong_view = strong_view
        self.split_batch = split_batch
        self.cuda_graphs = cuda_graphs
        # How the images of training were scaled: what prediction does to a new scan.
        self.normalisation: str | None = None
        # Of a step's samples, over processes and accumulated batches: the part that this batch is.
        self.part_of_step = 0
        self._graphs: StudentGraphs | None = None
        self._replicas: Replicas | None = None
        self.last_scores: list[CaseScore] = []

    @property
    def student_names(self) -> list[str]:
        """Names of the students, in the order of the configuration."""
        return list(self.student_configs)

    @property
    def predictor_names(self) -> list[str]:
        """Who is scored: every student, and the ensemble where there are several."""
        return [*self.student_names, ENSEMBLE] if len(self.student_names) > 1 else self.student_names

    @property
    def networks(self) -> dict[str, SegmentationNetwork]:
        """The students by name; ``students`` holds the same as a module."""
        return cast(dict[str, SegmentationNetwork], dict(self.students.items()))

    def segment(self, volume: Tensor) -> dict[str, Tensor]:
        """Return every predictor's label map (D, H, W) uint8 of a volume (C, D, H, W), at its native size."""
        return self.inference(self.networks, volume)

    def training_view(self, batch: Batch) -> Tensor:
        """Return the images (B, C, *S) that the students learn on.

        Raises:
            InputError: ``strong_view`` is on, and the data's transform gives one view.
        """
        if not self.strong_view:
            return batch["image"]
        if "image_strong" not in batch:
            raise InputError(
                "model.strong_view is true, but the data gives one view: set data's transform: weak_strong."
            )
        return batch["image_strong"]

    @abstractmethod
    def training_losses(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss, by name; they are summed for the one backward pass.

        Labels are read only where ``batch["label"]`` is not ``IGNORE_INDEX``.

        Args:
            batch: A training batch.
            outputs: What each student made of ``training_view(batch)``.
        """

    def student_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the student's optimizer trains; a method adds heads of its own here."""
        yield from self.students[name].named_parameters()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Join the students' optimizers and schedules."""
        optimizer = self.build_optimizer()
        schedule = build_schedule(optimizer, self.student_configs, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_optimizer(self) -> JointOptimizer:
        """Return the students' optimizers as one."""
        parts = [build_optimizer(self.student_parameters(n), s.optimizer, n) for n, s in self.student_configs.items()]
        return JointOptimizer(parts)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each student by itself, so that one student's spike does not shrink the others' steps."""
        if not gradient_clip_val:
            return
        for name in self.student_names:
            parameters = [p for _, p in self.student_parameters(name)]
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def training_outputs(self, batch: Batch) -> dict[str, StudentOutput]:
        """Return every student's output on ``training_view(batch)``, rows in the order of the batch."""
        return self.passes(self.training_view(batch), batch)

    def passes(self, view: Tensor, batch: Batch) -> dict[str, StudentOutput]:
        """Return every student's output on a view (B, C, *S) of the batch, in parts where ``split_batch`` says so."""
        labelled = sum(kind != Supervision.NONE for kind in kinds_of(batch)) if self.split_batch else 0
        if labelled in (0, len(view)):
            return dict(self(view))
        # The samplers fill a batch pool by pool, the unlabelled one last.
        parts = [self(view[:labelled]), self(view[labelled:])]
        return {name: StudentOutput.joined([part[name] for part in parts]) for name in self.student_names}

    def forward(self, image: Tensor) -> dict[str, StudentOutput]:
        """Return every student's output on ``image`` (B, C, *S)."""
        if self._graphs is not None and self.training and self.trainer.accumulate_grad_batches == 1:
            passes = self._graphs(image)
        else:
            passes = {name: network.forward_with_features(image) for name, network in self.networks.items()}
        return {name: StudentOutput(*made) for name, made in passes.items()}

    @contextlib.contextmanager
    def plain_passes(self) -> Iterator[None]:
        """Run the students without CUDA graphs meanwhile, in this process alone: hooks on their modules are called."""
        kept = self._graphs, self._replicas
        self._graphs = self._replicas = None
        try:
            yield
        finally:
            self._graphs, self._replicas = kept

    def teaching_outputs(self, batch: Batch, outputs: dict[str, StudentOutput]) -> dict[str, StudentOutput]:
        """Return the outputs that students teach each other with: those on the weak view where there are two.

        Args:
            batch: A training batch.
            outputs: The students' outputs on ``training_view(batch)``.
        """
        if not self.strong_view:
            return outputs
        with torch.no_grad():
            return self.passes(batch["image"], batch)

    def audited_batch(self, batch: Batch) -> Batch:
        """Return the batch with ``label`` and ``audit_label`` as in ``training_view(batch)``, pixel by pixel."""
        return batch

    def on_fit_start(self) -> None:
        """Record the students' passes from now on, where that is possible, and make teachers ready.

        Teachers predict in evaluation mode, but start in training mode: Lightning warns of what does not.
        """
        self.normalisation = getattr(self.trainer.datamodule, "normalisation", None)  # type: ignore[attr-defined]
        for module in self.modules():
            if isinstance(module, EmaTeacher):
                module.check_precision()
                module.train()
        whole = isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        # Anomaly detection reads every gradient, which no recording allows.
        recordable = whole and not getattr(self.trainer, "_detect_anomaly", False)
        if self.cuda_graphs and recordable and self.device.type == "cuda":
            self.record_passes()

    def record_passes(self) -> None:
        """Record the students' passes from now on; under DDP, average their gradients in one piece."""
        ddp = self.trainer.strategy.model
        self._graphs = StudentGraphs(self.networks, gathered=isinstance(ddp, DistributedDataParallel))
        if isinstance(ddp, DistributedDataParallel):
            self._replicas = Replicas(ddp, self, self._graphs)

    def on_validation_start(self) -> None:
        """Score the same networks in every process."""
        if self._replicas is not None:
            self._replicas.share_buffers()

    def on_train_end(self) -> None:
        """Leave the same networks in every process."""
        if self._replicas is not None:
            self._replicas.share_buffers()

    def on_fit_end(self) -> None:
        """Give the graphs' memory back."""
        self.release_graphs()

    def configure_callbacks(self) -> list[L.Callback]:
        """Give the graphs' memory back after an exception too, where Lightning calls no hook of a module."""
        return [OnException(self.release_graphs)]

    def release_graphs(self) -> None:
        """Give the graphs' memory back; the students run plain passes until the next ``fit``."""
        if self._graphs is not None:
            self._graphs.release()
            self._graphs = self._replicas = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and pixel sampling from the place in the run: a resumed run draws what the first would have."""
        accumulated = batch_idx % self.trainer.accumulate_grad_batches
        self.part_of_step = self.global_rank + self.trainer.world_size * accumulated
        place = (int(os.environ.get("PL_GLOBAL_SEED", "0")), self.global_rank, self.current_epoch, batch_idx)
        seed_draws(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)), self.device)
        if self._graphs is not None:
            self._graphs.start_step()
        if self._replicas is not None:
            self._replicas.start_step(takes_over=self.trainer.accumulate_grad_batches == 1)

    def on_after_backward(self) -> None:
        """Average the gradients over processes, where DDP does not."""
        if self._replicas is not None:
            self._replicas.average()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the summed loss of one batch."""
        outputs = self.training_outputs(batch)
        terms = self.training_losses(batch, outputs)
        loss = torch.stack(list(terms.values())).sum()
        if self._is_logged(self.global_step + 1):
            self._log_step(batch, outputs, terms, loss)
        return loss

    def _is_logged(self, steps: int) -> bool:
        """Tell whether Lightning writes what a run logs in its ``steps``-th step; the last is shown at least."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return steps % every == 0 or steps == self.trainer.max_steps

    def _log_step(
        self, batch: Batch, outputs: dict[str, StudentOutput], terms: dict[str, Tensor], loss: Tensor
    ) -> None:
        # Nothing for Lightning's own progress bar: for that it reads the last value after every step, which waits for
        # the GPU each time.
        values: dict[str, Any] = {f"loss/{name}": term.detach() for name, term in terms.items()}
        values |= {f"lr/{group['student']}": group["lr"] for group in cast(Any, self.optimizers()).param_groups}
        values |= pseudo_label_quality(self.audited_batch(batch), outputs)
        self.log("loss", loss.detach(), batch_size=len(batch["case_id"]))
        self.log_dict(values, batch_size=len(batch["case_id"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the data decided, so that the checkpoint predicts where the data is not."""
        checkpoint[TASK] = {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "class_names": list(self.class_names),
        }
        checkpoint[NORMALISATION] = self.normalisation

    def on_validation_epoch_start(self) -> None:
        """Start a fresh table of scores."""
        self._start_scores()

    def on_test_epoch_start(self) -> None:
        """Start a fresh table of scores."""
        self._start_scores()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        """Segment and score the one case of the batch."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        return self._score_case(batch, surface=self.surface_in_fit or not fitting)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        """Segment and score the one case of the batch, surface distances included."""
        return self._score_case(batch, surface=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        """Segment the one case of the batch."""
        return {"predictions": self.segment(batch["image"][0])}

    def on_validation_epoch_end(self) -> None:
        """Log the means of every student and of the ensemble."""
        self._finish_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the means of every student and of the ensemble."""
        self._finish_scores("test")

    def _start_scores(self) -> None:
        self._case_scores = CaseScores(self.class_names, self.predictor_names).to(self.device)

    def _score_case(self, batch: Batch, surface: bool) -> dict[str, dict[str, Tensor]]:
        predictions = self.segment(batch["image"][0])
        spacing = batch["spacing_mm"][0]
        for name, prediction in predictions.items():
            self._case_scores.update(batch["case_id"][0], name, prediction, batch["label"][0], spacing, surface=surface)
        return {"predictions": predictions}

    def _finish_scores(self, part: str) -> None:
        self.last_scores = self._case_scores.rows()
        for summary in summarize(self.last_scores):
            # The rows are already gathered, so every rank logs the same values and none needs to synchronise.
            self.log_dict(logged_means(part, summary), rank_zero_only=False, sync_dist=False)
            if summary.predictor == headline_predictor(self.predictor_names):
                dice = summary.foreground["dice"].mean
                self.log(headline_metric(part), dice, sync_dist=False)


def build_student(name: str, config: StudentConfig, in_channels: int, num_classes: int) -> SegmentationNetwork:
    """Build one student's network.

    Raises:
        InputError: It does not exist, refuses its options, or classifies instead of segmenting.
    """
    # No method trains auxiliary heads, and DDP would wait for their gradients.
    without_heads = {"deep_supervision": False} if "deep_supervision" in options_of(config.network) else {}
    network = create_network(config.network, in_channels, num_classes, **without_heads | config.options)
    if not isinstance(network, SegmentationNetwork):
        raise InputError(
            f"Student {name!r}: network {config.network!r} classifies whole images; choose one that segments: "
            f"{', '.join(list_networks('segment'))}."
        )
    return network


def logged_means(part: str, summary: PredictorSummary) -> dict[str, float]:
    """Name the means of one predictor for the loggers; scores that were not computed are left out.

    Args:
        part: ``val`` or ``test``.
        summary: The predictor's statistics.
    """
    prefix = f"{part}/{summary.predictor}"
    values = {f"{prefix}/{name}": summary.foreground[name].mean for name in VALUE_NAMES}
    values |= {f"{prefix}/{name}_with_background": summary.with_background[name].mean for name in OVERLAP_NAMES}
    values |= {f"{prefix}/dice/{c.class_name}": c.scores["dice"].mean for c in summary.foreground_classes}
    return {name: value for name, value in values.items() if not math.isnan(value)}
