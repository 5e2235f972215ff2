"""Boxes pasted into unlabelled images: what they hold, who receives them, and what the loss makes of them."""

import pytest
import torch
import torch.nn.functional as F

from mambaseg.losses.dice import soft_dice_loss
from mambaseg.methods import MixedMambaUNet, SemiMambaUNet
from mambaseg.methods.components.cutmix import CutMix, CutMixConfig, draw_cutmix, mixed_target
from mambaseg.methods.components.ema_teacher import EmaTeacher
from mambaseg.methods.semi_mamba_unet import CrossConfig

ALWAYS = {source: CutMixConfig(source=source) for source in ("labelled", "unlabelled", "any")}


@pytest.mark.parametrize("source", list(ALWAYS))
def test_unlabelled_images_alone_receive_boxes_and_only_from_the_source(batch, source):
    givers = {"labelled": {0, 1}, "unlabelled": {2, 3}, "any": {0, 1, 2, 3}}[source]
    seen = {2: set(), 3: set()}
    for step in range(40):
        mix = draw_cutmix(ALWAYS[source], batch, step)
        mixed = mix(batch["image"])
        assert torch.equal(mixed[:2], batch["image"][:2])
        for row in (2, 3):
            giver = int(mix.source[row])
            seen[row].add(giver)
            box = mix.box[row]
            assert torch.equal(mixed[row, 0][box], batch["image"][giver, 0][box])
            assert torch.equal(mixed[row, 0][~box], batch["image"][row, 0][~box])
    assert seen == {row: givers - {row} for row in (2, 3)}


def test_boxes_are_rectangles_of_the_area_asked_for(batch):
    for step in range(40):
        box = draw_cutmix(CutMixConfig(area=(0.2, 0.4), aspect=2.0), batch, step).box[2]
        height, width = box.any(1).sum().item(), box.any(0).sum().item()
        assert box.sum() == height * width
        assert 0.15 < box.float().mean() < 0.47, "rounding to whole pixels moves it a little"


def test_the_probability_is_that_of_a_box(batch):
    count = sum(
        draw_cutmix(CutMixConfig(probability=0.3), batch, step).box.flatten(1).any(1).sum() for step in range(200)
    )
    assert 90 < count < 150
    never = draw_cutmix(CutMixConfig(probability=0.0), batch, 0)
    assert torch.equal(never(batch["image"]), batch["image"])


def test_seed_and_step_alone_decide(batch, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    first = draw_cutmix(ALWAYS["any"], batch, 3)
    torch.rand(5)
    again = draw_cutmix(ALWAYS["any"], batch, 3)
    assert torch.equal(first.box, again.box)
    assert torch.equal(first.source, again.source)
    assert not torch.equal(first.box, draw_cutmix(ALWAYS["any"], batch, 4).box)
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    assert not torch.equal(first.box, draw_cutmix(ALWAYS["any"], batch, 3).box)


def test_without_anyone_to_give_nothing_is_pasted(batch):
    batch["supervision"][:] = 2
    assert not draw_cutmix(ALWAYS["labelled"], batch, 0).box.any()
    batch["supervision"][:] = 0
    assert not draw_cutmix(ALWAYS["labelled"], batch, 0).box.any()


def test_parts_of_a_step_have_boxes_of_their_own(batch):
    parts = [draw_cutmix(ALWAYS["any"], batch, 3, part) for part in range(3)]
    assert torch.equal(parts[0].box, draw_cutmix(ALWAYS["any"], batch, 3).box)
    assert not any(torch.equal(a.box, b.box) for a, b in ((parts[0], parts[1]), (parts[1], parts[2])))


@pytest.mark.parametrize("source", list(ALWAYS))
def test_scribbled_images_neither_give_nor_change_what_others_get(batch, source):
    mixed = batch | {"supervision": torch.tensor([1, 2, 1, 0, 2, 0, 0]), "label": torch.full((7, 24, 20), 255)}
    others = [1, 3, 4, 5, 6]
    part = {"supervision": mixed["supervision"][others], "label": mixed["label"][others], "image": batch["image"]}
    for step in range(20):
        whole, alone = draw_cutmix(ALWAYS[source], mixed, step), draw_cutmix(ALWAYS[source], part, step)
        assert whole.source[others].tolist() == [others[row] for row in alone.source]
        assert torch.equal(whole.box[others], alone.box)
        assert not whole.box[[0, 2]].any()


def test_students_of_mixed_supervision_see_the_boxes_that_their_targets_have(students, batch, monkeypatch):
    """Rows are told apart by their values: what is pasted in image and target comes from the same one."""
    rows = torch.arange(6.0)
    label = torch.full((6, 24, 20), 255)
    label[1], label[4] = 1, 2
    label[0, :3] = 3
    marked = {
        "image": rows[:, None, None, None].expand(6, 1, 24, 20),
        "label": label,
        "supervision": torch.tensor([1, 2, 1, 0, 2, 0]),
        "case_id": list("abcdef"),
        "spacing_mm": [(1.0, 1.0)] * 6,
    }
    module = MixedMambaUNet(students=students, cross=CrossConfig(cutmix=ALWAYS["labelled"])).eval()
    targets = []

    def noted(*given):
        targets.append(mixed_target(*given))
        return targets[-1]

    monkeypatch.setattr("mambaseg.methods.semi_mamba_unet.mixed_target", noted)
    view = module.training_view(marked)
    module.training_losses(marked, module(marked["image"]))
    for place, row in enumerate([1, 3, 4, 5]):
        if row not in (3, 5):
            continue
        box = view[row, 0] != row
        assert box.any()
        giver = int(view[row, 0][box][0])
        assert targets[0][place][box].unique().tolist() == [{1: 1, 4: 2}[giver]]


def test_volumes_are_mixed_too(batch):
    volume = {**batch, "image": torch.rand(4, 1, 8, 10, 6), "label": torch.full((4, 8, 10, 6), 255)}
    mix = draw_cutmix(ALWAYS["labelled"], volume, 0)
    assert mix.box.shape == (4, 8, 10, 6)
    assert mix(volume["image"]).shape == (4, 1, 8, 10, 6)


def test_a_target_holds_masks_in_the_box_pseudo_labels_outside_and_nothing_of_labelled_rows(batch):
    box = torch.zeros(4, 24, 20, dtype=torch.bool)
    box[2, 5:15, 3:9] = True
    mix = CutMix(torch.tensor([0, 1, 1, 3]), box)
    pseudo = torch.randint(4, (4, 24, 20))
    target = mixed_target(batch, pseudo, mix)
    assert (target[:2] == 255).all()
    assert torch.equal(target[3], pseudo[3])
    assert torch.equal(target[2][box[2]], batch["label"][1][box[2]])
    assert torch.equal(target[2][~box[2]], pseudo[2][~box[2]])


@pytest.mark.parametrize("options", [{"area": (0.0, 0.5)}, {"area": (0.6, 0.5)}, {"probability": 1.5}, {"aspect": 0.5}])
def test_impossible_boxes_are_refused(options):
    with pytest.raises(ValueError, match="CutMix needs"):
        CutMixConfig(**options)


@pytest.mark.parametrize("teacher", ["partner", "ema"])
def test_students_learn_the_mixture_of_labels_made_on_whole_images(students, batch, teacher):
    cross = CrossConfig(teacher=teacher, cutmix=ALWAYS["labelled"])
    module = SemiMambaUNet(students=students, recipe="paper", cross=cross, ablate=["supervised"]).eval()
    mix = draw_cutmix(ALWAYS["labelled"], batch, 0)
    outputs = module.training_outputs(batch)
    terms = module.training_losses(batch, outputs)
    whole = {name: output.probabilities for name, output in module(batch["image"]).items()}
    word = whole["mamba"] if teacher == "partner" else torch.stack(list(whole.values())).mean(0)
    target = mix(torch.where(batch["label"] == 255, word.argmax(1), batch["label"]))[2:]
    z = module(mix(batch["image"]))["cnn"].logits[2:]
    torch.testing.assert_close(terms["cross/cnn"], F.cross_entropy(z, target) + soft_dice_loss(z.softmax(1), target))


def test_the_audit_follows_the_boxes(students, batch):
    module = SemiMambaUNet(students=students, cross=CrossConfig(cutmix=ALWAYS["labelled"]))
    mix = draw_cutmix(ALWAYS["labelled"], batch, 0)
    assert torch.equal(module.audited_batch(batch)["audit_label"], mix(batch["audit_label"]))
    plain = SemiMambaUNet(students=students)
    assert torch.equal(plain.audited_batch(batch)["audit_label"], batch["audit_label"])


def test_scribbled_images_beside_do_not_move_the_boxes(students, batch):
    """Semi-supervised rows are cut out of a mixed batch; their targets must fit the images mixed as a whole."""
    batch["supervision"] = torch.tensor([2, 1, 0, 0])
    cross = CrossConfig(teacher="ema", cutmix=ALWAYS["unlabelled"])
    module = MixedMambaUNet(students=students, recipe="paper", cross=cross, ablate=["pooled_contrast"]).eval()
    terms = module.training_losses(batch, module.training_outputs(batch))
    mix = draw_cutmix(ALWAYS["unlabelled"], batch, 0)
    target = mix(module.teacher(batch["image"]).argmax(1))[2:]
    z = module(mix(batch["image"]))["cnn"].logits[2:]
    torch.testing.assert_close(terms["cross/cnn"], F.cross_entropy(z, target) + soft_dice_loss(z.softmax(1), target))


def test_a_teacher_can_normalise_with_the_images_at_hand():
    student = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5))
    teacher = EmaTeacher({"a": student}, decay=0.9, norm="batch")
    image = torch.rand(4, 1, 6, 6)
    features = student[0](image)
    mean, variance = features.mean((0, 2, 3), keepdim=True), features.var((0, 2, 3), keepdim=True, unbiased=False)
    expected = ((features - mean) / (variance + 1e-5).sqrt()).softmax(1)
    before = {name: value.clone() for name, value in teacher.averages.state_dict().items() if "running" in name}
    torch.testing.assert_close(teacher(image), expected)
    after = teacher.averages.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "its statistics stay the students'"


def test_the_teacher_sees_only_images_with_unknown_pixels(students, batch):
    module = SemiMambaUNet(students=students, cross=CrossConfig(teacher="ema")).eval()
    seen = []
    module.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module.training_losses(batch, module.training_outputs(batch))
    (image,) = seen
    assert torch.equal(image, batch["image"][2:])
