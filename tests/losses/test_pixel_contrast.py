"""The pixel-level contrast: sampling, the loss against a slow definition, and its gradients."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mambaseg.losses.pixel_contrast import (
    PixelSample,
    _histogram,
    _histogram_by_sorting,
    gather_at,
    pixel_info_nce,
    sample_pixels,
    unit,
)


def sample_of(classes, valid=None):
    n = len(classes)
    position = (torch.arange(n), torch.arange(n))
    keep = torch.ones(n, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return PixelSample(torch.zeros(n, dtype=torch.long), position, torch.tensor(classes), keep)


def slow_info_nce(anchors, keys, sample, temperature):
    losses = []
    for i in range(len(anchors)):
        if not sample.valid[i]:
            continue
        positive = math.exp(float(anchors[i] @ keys[i]) / temperature)
        negatives = sum(
            math.exp(float(anchors[i] @ keys[j]) / temperature)
            for j in range(len(keys))
            if sample.valid[j] and sample.classes[j] != sample.classes[i]
        )
        losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / max(len(losses), 1)


LABELS = [[0, 0, 3, 255, 1, 3, 3], [255] * 4, [2], [], list(range(256)) * 2, [255, 0, 254, 1, 0]]


@pytest.mark.parametrize("labels", LABELS)
def test_both_histograms_count_the_same(labels):
    values = torch.tensor(labels, dtype=torch.int64)
    counted, sorted_out = _histogram(values), _histogram_by_sorting(values)
    assert torch.equal(counted, sorted_out)
    assert counted.tolist() == [labels.count(label) for label in range(256)]


@pytest.mark.gpu
def test_the_histogram_on_a_gpu_counts_the_same_and_does_not_wait():
    for values in (*map(torch.tensor, LABELS[:3]), torch.randint(256, (16 * 224 * 224,))):
        values = values.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            counted = _histogram(values)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(counted.cpu(), torch.bincount(values.cpu(), minlength=256))


def test_every_sampled_pixel_is_usable_and_drawn_once():
    classes = torch.full((2, 16, 16), 255)
    classes[0, :4] = 0
    classes[1, 3, :5] = 2
    sample = sample_pixels(classes, 69)
    assert sample.valid.all()
    flat = sample.image * 256 + sample.position[0] * 16 + sample.position[1]
    assert len(flat.unique()) == 69
    assert (classes[sample.image, sample.position[0], sample.position[1]] == sample.classes).all()


def test_rare_classes_are_drawn_as_often_as_common_ones():
    torch.manual_seed(0)
    classes = torch.zeros(4, 64, 64, dtype=torch.long)
    classes[:, :8, :8] = 1
    share = (sample_pixels(classes, 200).classes == 1).float().mean().item()
    assert 0.35 < share < 0.6


def test_too_few_usable_pixels_are_marked_invalid():
    classes = torch.full((1, 8, 8), 255)
    classes[0, 0, :3] = 1
    sample = sample_pixels(classes, 10)
    assert sample.valid.sum() == 3
    assert (sample.classes[sample.valid] == 1).all()


def test_features_are_taken_from_the_cell_that_covers_the_pixel():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    sample = PixelSample(
        torch.tensor([0, 0]), (torch.tensor([0, 7]), torch.tensor([3, 12])), torch.tensor([0, 1]), torch.ones(2).bool()
    )
    assert gather_at(features, sample, stride=4).flatten().tolist() == [0.0, 7.0]


@pytest.mark.parametrize("valid", [None, [True, True, False, True, False, True]])
def test_loss_equals_the_slow_definition(valid):
    torch.manual_seed(1)
    sample = sample_of([0, 1, 1, 2, 0, 2], valid)
    anchors, keys = unit(torch.randn(6, 5)), unit(torch.randn(6, 5))
    expected = slow_info_nce(anchors, keys, sample, 0.1)
    assert pixel_info_nce(anchors, keys, sample, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_several_pairs_give_the_mean_of_each():
    torch.manual_seed(3)
    sample = sample_of([0, 1, 1, 2, 0, 2], [True, True, False, True, True, True])
    anchors, keys = (torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    each = torch.stack([pixel_info_nce(a, k, sample, 0.5) for a, k in zip(anchors, keys, strict=True)]).mean()
    together = pixel_info_nce(anchors, keys, sample, 0.5)
    torch.testing.assert_close(together, each, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad(loss, anchors)[0] for loss in (together, each))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_gradient_reaches_anchors_and_not_keys():
    torch.manual_seed(2)
    raw_a, raw_k = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sample = sample_of([0, 1, 1, 2, 0, 2])
    pixel_info_nce(raw_a, raw_k, sample, 0.5).backward()
    assert raw_k.grad is None
    assert raw_a.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda a: pixel_info_nce(a, raw_k.detach(), sample, 0.5), raw_a)


def test_no_valid_pixel_gives_zero_and_finite_gradient():
    raw = torch.randn(3, 5, requires_grad=True)
    loss = pixel_info_nce(raw, torch.randn(3, 5), sample_of([0, 1, 2], [False] * 3), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(raw.grad).all()


def test_one_class_only_has_no_negatives_and_no_loss():
    keys = unit(torch.randn(4, 5))
    assert pixel_info_nce(keys, keys, sample_of([1, 1, 1, 1]), 0.1).item() == pytest.approx(0.0, abs=1e-6)


VALID = [True, True, False, True, True, True, True, False]


def _rank(rank, folder, result):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(3)
    anchors, keys = unit(torch.randn(8, 5)), unit(torch.randn(8, 5))
    classes = [0, 1, 1, 2, 0, 2, 1, 0]
    half = slice(4 * rank, 4 * rank + 4)
    sample = sample_of(classes[half], VALID[half])
    loss = pixel_info_nce(anchors[half], keys[half], sample, 0.1)
    both_ways = [torch.stack([first[half], second[half]]) for first, second in ((anchors, keys), (keys, anchors))]
    result[rank] = loss.item(), pixel_info_nce(*both_ways, sample, 0.1).item()
    dist.destroy_process_group()


def test_negatives_come_from_every_rank(tmp_path):
    with mp.Manager() as manager:
        result = manager.dict()
        mp.spawn(_rank, args=(str(tmp_path), result), nprocs=2)
        torch.manual_seed(3)
        anchors, keys = unit(torch.randn(8, 5)), unit(torch.randn(8, 5))
        sample = sample_of([0, 1, 1, 2, 0, 2, 1, 0], VALID)
        there = pixel_info_nce(anchors, keys, sample, 0.1).item()
        back = pixel_info_nce(keys, anchors, sample, 0.1).item()
        for rank in range(2):
            assert result[rank] == pytest.approx((there, (there + back) / 2), rel=1e-5)
