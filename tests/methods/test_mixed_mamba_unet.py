"""Mixed supervision: exactly the published losses at its ends, and their sum between them."""

import pytest
import torch

from mambaseg.methods import MixedMambaUNet, SemiMambaUNet, WeakMambaUNet
from mambaseg.methods.components.pixel_contrast import PixelContrastConfig
from mambaseg.methods.components.scribble_terms import ScribbleConfig
from mambaseg.methods.semi_mamba_unet import CrossConfig


@pytest.fixture
def three(students):
    return {**students, "second": students["cnn"]}


@pytest.fixture
def mixed(batch):
    """One dense, two scribbled and one unlabelled sample."""
    keep = torch.rand(batch["audit_label"].shape, generator=torch.Generator().manual_seed(1)) < 0.1
    label = torch.where(keep, batch["audit_label"], 255)
    label[0], label[3] = batch["audit_label"][0], 255
    return {**batch, "label": label, "supervision": torch.tensor([2, 1, 1, 0])}


def scribbles_only(batch):
    return {**batch, "label": batch["label"][[1, 2, 1, 2]], "supervision": torch.ones(4, dtype=torch.long)}


def alike(method, other, batch, seed=0):
    """The terms of two methods with equal weights on the same outputs."""
    other.load_state_dict(method.state_dict(), strict=False)
    terms = []
    outputs = method.eval()(batch["image"])
    for module in (method, other.eval()):
        torch.manual_seed(seed)
        terms.append(module.training_losses(batch, outputs))
    return terms


@pytest.mark.parametrize("recipe", ["released", "paper"])
@pytest.mark.parametrize("cross", [None, CrossConfig(teacher="ema"), CrossConfig(confidence=0.3)])
def test_without_scribbles_it_is_semi_mamba_unet(three, batch, recipe, cross):
    options = {"students": three, "recipe": recipe, "cross": cross}
    options["pixel_contrast"] = PixelContrastConfig(confidence=0.2, pixels=64)
    mine, theirs = alike(MixedMambaUNet(**options), SemiMambaUNet(**options), batch)
    assert mine.keys() == theirs.keys()
    for name, term in mine.items():
        assert torch.equal(term, theirs[name]), name


@pytest.mark.parametrize("config", [None, ScribbleConfig(mix="mean", where="unscribbled", mixed_ce=1.0)])
def test_with_scribbles_alone_it_is_weak_mamba_unet(three, mixed, config):
    batch = scribbles_only(mixed)
    module = MixedMambaUNet(students=three, scribble=config, scribble_share=0.3)
    mine, theirs = alike(module, WeakMambaUNet(students=three, scribble=config), batch)
    assert mine.keys() == theirs.keys()
    for name, term in mine.items():
        assert torch.equal(term, theirs[name]), name


def test_between_the_ends_it_is_the_sum_of_both_on_their_own_samples(three, mixed):
    module = MixedMambaUNet(students=three, scribble_share=0.5).eval()
    outputs = module(mixed["image"])
    terms = module.training_losses(mixed, outputs)
    semi, weak = SemiMambaUNet(students=three), WeakMambaUNet(students=three)
    expected = {}
    for other, rows, share in ((semi, [0, 3], 1.0), (weak, [1, 2], 0.5)):
        other.load_state_dict(module.state_dict())
        other.eval()
        part = {k: v[rows] if isinstance(v, torch.Tensor) else [v[r] for r in rows] for k, v in mixed.items()}
        expected |= {k: share * v for k, v in other.training_losses(part, other(part["image"])).items()}
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_nothing_but_the_known_labels_is_read(three, mixed):
    module = MixedMambaUNet(students=three).eval()
    outputs = module(mixed["image"])
    before = module.training_losses(mixed, outputs)
    after = module.training_losses({**mixed, "audit_label": torch.full_like(mixed["label"], 3)}, outputs)
    assert {n: t.item() for n, t in before.items()} == {n: t.item() for n, t in after.items()}


def test_slow_averages_mix_the_scribbles_labels_too(three, mixed):
    module = MixedMambaUNet(students=three, cross=CrossConfig(teacher="ema")).eval()
    with torch.no_grad():
        for p in module.teacher.averages["mamba"].parameters():
            p.zero_()
    batch = scribbles_only(mixed)
    outputs = module(batch["image"])
    plain = WeakMambaUNet(students=three)
    plain.load_state_dict(module.state_dict(), strict=False)
    terms, others = module.training_losses(batch, outputs), plain.training_losses(batch, outputs)
    assert torch.equal(terms["scribble/cnn"], others["scribble/cnn"])
    assert not torch.equal(terms["mixed/cnn"], others["mixed/cnn"])
