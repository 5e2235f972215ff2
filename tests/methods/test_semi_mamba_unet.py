"""Semi-Mamba-UNet's losses against the formulas of paper and released code, written out on the two halves of a
batch."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.errors import InputError
from mambaseg.losses.dice import soft_dice_loss
from mambaseg.methods import SemiMambaUNet, Supervised
from mambaseg.methods.components.ema_teacher import EmaTeacher
from mambaseg.methods.components.pixel_contrast import PixelContrastConfig
from mambaseg.methods.components.ramp_up import RampUp
from mambaseg.methods.semi_mamba_unet import CrossConfig


def losses_of(module, batch):
    module.eval()  # dropout would make two calls differ
    outputs = module(batch["image"])
    return module.training_losses(batch, outputs), outputs


def by_hand(batch, outputs, recipe, ramp):
    """The published total, from logits, labels of the first two samples and pseudo-labels of the last two."""
    z1, z2 = (output.logits for output in outputs.values())
    p1, p2 = z1.softmax(1), z2.softmax(1)
    y, n = batch["label"][:2], 2
    half = 0.5 if recipe == "released" else 1.0
    supervised = sum(half * (F.cross_entropy(z[:n], y) + soft_dice_loss(p[:n], y)) for z, p in ((z1, p1), (z2, p2)))
    h1, h2 = z1[n:].argmax(1), z2[n:].argmax(1)
    cross = soft_dice_loss(p1[n:], h2) + soft_dice_loss(p2[n:], h1)
    if recipe == "paper":
        cross = cross + F.cross_entropy(z1[n:], h2) + F.cross_entropy(z2[n:], h1)
    g1, g2 = (F.normalize(z.mean((2, 3)), dim=1) for z in (z1, z2))
    con = F.mse_loss(g1, g2) if recipe == "released" else ((g1 - g2) ** 2).sum(1).mean()
    return supervised + ramp * cross + con


@pytest.mark.parametrize(("recipe", "ramp"), [("released", RampUp(0.1, 30_000, 150)(0)), ("paper", 1.0)])
def test_recipes_equal_the_published_formulas(students, batch, recipe, ramp):
    terms, outputs = losses_of(SemiMambaUNet(students=students, recipe=recipe), batch)
    assert set(terms) == {"supervised/cnn", "supervised/mamba", "cross/cnn", "cross/mamba", "pooled_contrast"}
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(), by_hand(batch, outputs, recipe, ramp))


def test_released_ramp_is_the_published_one():
    ramp = RampUp(0.1, 30_000, 150)
    assert ramp(0) == pytest.approx(6.7e-4, abs=1e-5)
    assert ramp(15_000) == pytest.approx(0.0287, abs=1e-4)
    assert ramp(149) == ramp(0)
    assert ramp(30_000) == ramp(99_999) == pytest.approx(0.1)


@pytest.mark.parametrize("term", ["supervised", "cross", "pooled_contrast", "pixel_contrast"])
def test_every_term_can_be_left_out(students, batch, term):
    torch.manual_seed(0)
    full, _ = losses_of(SemiMambaUNet(students=students, pixel_contrast=PixelContrastConfig()), batch)
    torch.manual_seed(0)
    module = SemiMambaUNet(students=students, pixel_contrast=PixelContrastConfig(), ablate=[term])
    ablated, _ = losses_of(module, batch)
    assert {name for name in full if name.split("/")[0] != term} == set(ablated)
    assert len(ablated) < len(full)


def test_nothing_but_the_known_labels_is_read(students, batch):
    torch.manual_seed(0)
    module = SemiMambaUNet(students=students, pixel_contrast=PixelContrastConfig(confidence=0.2))
    torch.manual_seed(1)
    before, _ = losses_of(module, batch)
    poisoned = {**batch, "audit_label": torch.full_like(batch["audit_label"], 3), "case_id": ["x"] * 4}
    torch.manual_seed(1)
    after, _ = losses_of(module, poisoned)
    assert {name: value.item() for name, value in before.items()} == {name: v.item() for name, v in after.items()}


def test_pixel_contrast_trains_networks_and_their_own_projectors(students, batch):
    module = SemiMambaUNet(
        students=students,
        pixel_contrast=PixelContrastConfig(weight=RampUp(1.0, 0), confidence=0.2),
        ablate=["supervised", "cross", "pooled_contrast"],
    )
    terms, _ = losses_of(module, batch)
    terms["pixel_contrast"].backward()
    for name in ("cnn", "mamba"):
        parameters = dict(module.student_parameters(name))
        heads = {key: p for key, p in parameters.items() if key.startswith("projector")}
        assert len(heads) == 6
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.values())
        touched = [key for key, p in parameters.items() if p.grad is not None and p.grad.abs().sum() > 0]
        assert len(touched) > 20


def test_contrast_uses_labels_where_known_and_only_confident_pseudo_labels(students, batch):
    module = SemiMambaUNet(students=students, pixel_contrast=PixelContrastConfig(confidence=1.1))
    outputs = module(batch["image"])
    classes = module.pixel_contrast.class_map(batch, outputs)
    assert torch.equal(classes[:2], batch["label"][:2])
    assert (classes[2:] == 255).all()


def test_three_students_learn_from_the_mean_of_the_others(students, batch):
    three = {**students, "second": students["cnn"]}
    terms, outputs = losses_of(SemiMambaUNet(students=three), batch)
    assert {"cross/cnn", "cross/mamba", "cross/second"} <= set(terms)
    partners = torch.stack([outputs[name].probabilities for name in ("mamba", "second")]).mean(0)
    expected = RampUp(0.1, 30_000, 150)(0) * soft_dice_loss(outputs["cnn"].probabilities[2:], partners[2:].argmax(1))
    torch.testing.assert_close(terms["cross/cnn"], expected)


def test_one_student_is_refused(students):
    with pytest.raises(InputError, match="two or more students"):
        SemiMambaUNet(students={"cnn": students["cnn"]})


def test_supervised_ignores_unlabelled_samples(students, batch):
    module = Supervised(students=students)
    terms, outputs = losses_of(module, batch)
    z, y = outputs["cnn"].logits[:2], batch["label"][:2]
    expected = 0.5 * F.cross_entropy(z, y) + 0.5 * soft_dice_loss(z.softmax(1), y)
    torch.testing.assert_close(terms["supervised/cnn"], expected)


def test_a_batch_without_labels_gives_zero_supervised_loss(students, batch):
    batch["label"] = torch.full_like(batch["label"], 255)
    terms, _ = losses_of(Supervised(students=students), batch)
    assert [term.item() for term in terms.values()] == [0.0, 0.0]


def test_unsure_pseudo_labels_are_left_out(students, batch):
    module = SemiMambaUNet(students=students, cross=CrossConfig(confidence=1.1))
    terms, _ = losses_of(module, batch)
    assert terms["cross/cnn"].item() == terms["cross/mamba"].item() == 0.0


def test_the_ema_teacher_is_the_mean_of_slow_averages_seen_in_evaluation_mode(students, batch):
    module = SemiMambaUNet(students=students, recipe="paper", cross=CrossConfig(teacher="ema"), ablate=["supervised"])
    assert not any(p.requires_grad for p in module.teacher.parameters())
    terms, outputs = losses_of(module, batch)
    # Nothing was trained yet, so the averages are the students themselves.
    mean = torch.stack([output.probabilities for output in outputs.values()]).mean(0)
    expected = F.cross_entropy(outputs["cnn"].logits[2:], mean[2:].argmax(1))
    expected = expected + soft_dice_loss(outputs["cnn"].probabilities[2:], mean[2:].argmax(1))
    torch.testing.assert_close(terms["cross/cnn"], expected)


def test_averages_follow_weights_and_buffers():
    student = torch.nn.BatchNorm1d(1)
    teacher = EmaTeacher({"a": student}, decay=0.9)
    values = []
    for step in range(1, 40):
        with torch.no_grad():
            student.weight.fill_(float(step))
            student.running_mean.fill_(float(step))
        teacher.update({"a": student})
        values.append((teacher.averages["a"].weight.item(), teacher.averages["a"].running_mean.item()))
    average, expected = 1.0, []
    for step in range(1, 40):
        keep = min(1 - 1 / (step + 1), 0.9)
        average = keep * average + (1 - keep) * step
        expected.append(average)
    assert [v[0] for v in values] == pytest.approx(expected, rel=1e-5)
    assert values[0][1] == pytest.approx(0.5)


def test_the_strong_view_is_learned_and_the_weak_one_labels(students, batch):
    batch["image_strong"] = batch["image"].flip(-1) * 0.5
    module = SemiMambaUNet(students=students, recipe="paper", strong_view=True).eval()
    outputs = module(module.training_view(batch))
    terms = module.training_losses(batch, outputs)
    weak = module(batch["image"])["mamba"].pseudo_label[2:]
    z = outputs["cnn"].logits[2:]
    expected = F.cross_entropy(z, weak) + soft_dice_loss(z.softmax(1), weak)
    torch.testing.assert_close(terms["cross/cnn"], expected)


def test_a_strong_view_that_the_data_does_not_give_is_named(students, batch):
    module = Supervised(students=students, strong_view=True)
    with pytest.raises(InputError, match="transform: weak_strong"):
        module.training_view(batch)


def test_a_split_batch_normalises_labelled_and_unlabelled_samples_apart(students, batch):
    module = SemiMambaUNet(students=students, split_batch=True).train()
    torch.manual_seed(0)
    outputs = module.training_outputs(batch)
    torch.manual_seed(0)
    labelled, unlabelled = module(batch["image"][:2]), module(batch["image"][2:])
    for name, output in outputs.items():
        apart = torch.cat([labelled[name].logits, unlabelled[name].logits])
        torch.testing.assert_close(output.logits, apart)
    module.split_batch = False
    torch.manual_seed(0)
    assert not torch.allclose(module.training_outputs(batch)["cnn"].logits, outputs["cnn"].logits)


def test_a_split_batch_of_one_kind_is_passed_whole(students, batch):
    module = SemiMambaUNet(students=students, split_batch=True).eval()
    batch["supervision"] = torch.full((4,), 2)
    torch.testing.assert_close(module.training_outputs(batch)["cnn"].logits, module(batch["image"])["cnn"].logits)
