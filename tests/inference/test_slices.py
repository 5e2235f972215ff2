import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import nn

from mambaseg.inference.slices import SliceInference, zoom_nearest


@pytest.mark.parametrize("native", [(256, 216), (154, 428), (7, 5), (224, 224), (1, 9), (512, 154)])
def test_nearest_zoom_is_scipys(native):
    image = 1 + np.random.default_rng(0).random(native).astype(np.float32)
    for size in [(224, 224), (33, 64)]:
        expected = zoom(image, (size[0] / native[0], size[1] / native[1]), order=0)
        ours = zoom_nearest(torch.from_numpy(image), size).numpy()
        # Rounding makes scipy push the last row or column of some sizes off the image, to 0; ours keeps it.
        lost = expected == 0
        assert not lost[:-1, :-1].any()
        assert np.array_equal(np.where(lost, 0, ours), expected)
        assert (ours > 0).all()


class Constant(nn.Module):
    """Says class ``c`` with probability ``p`` everywhere and the others with equal shares."""

    def __init__(self, c, p):
        super().__init__()
        self.logits = torch.full((4,), (1 - p) / 3).index_fill(0, torch.tensor([c]), p).log()

    def forward(self, x):
        return self.logits.view(1, 4, 1, 1).expand(len(x), 4, *x.shape[2:])


@pytest.mark.parametrize("resize", ["nearest", "linear"])
def test_students_and_ensemble_at_native_size(resize):
    inference = SliceInference(size=(16, 24), resize=resize, batch_size=3)
    volume = torch.rand(1, 7, 11, 13)
    labels = inference({"a": Constant(1, 0.9), "b": Constant(2, 0.5)}, volume)
    assert set(labels) == {"a", "b", "ensemble"}
    assert {name: (tuple(x.shape), x.dtype, x.unique().tolist()) for name, x in labels.items()} == {
        "a": ((7, 11, 13), torch.uint8, [1]),
        "b": ((7, 11, 13), torch.uint8, [2]),
        "ensemble": ((7, 11, 13), torch.uint8, [1]),
    }


def test_one_student_has_no_ensemble():
    assert set(SliceInference(size=(8, 8))({"a": Constant(0, 0.9)}, torch.rand(1, 2, 8, 8))) == {"a"}


class Deep(Constant):
    """Like a network with deep supervision: a list, the full size first."""

    def forward(self, x):
        logits = super().forward(x)
        return [logits, logits[..., ::2, ::2]]


def test_deep_supervision_gives_the_whole_image():
    labels = SliceInference(size=(8, 8))({"a": Deep(2, 0.9), "b": Constant(2, 0.9)}, torch.rand(1, 2, 8, 8))
    assert all(label.unique().tolist() == [2] for label in labels.values())


class Threshold(nn.Module):
    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1) * 100


def test_the_published_protocol_is_zoom_argmax_zoom():
    volume = torch.rand(1, 3, 20, 31)
    labels = SliceInference(size=(16, 16))({"a": Threshold()}, volume)["a"]
    expected = [
        zoom((zoom(v, (16 / 20, 16 / 31), order=0) > 0.5).astype(np.uint8), (20 / 16, 31 / 16), order=0)
        for v in volume[0].numpy()
    ]
    assert np.array_equal(labels.numpy(), np.stack(expected))
