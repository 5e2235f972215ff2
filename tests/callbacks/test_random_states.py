import io
import random

import torch
from numpy import random as numpy_random

from mambaseg.callbacks.random_states import RandomStates


def draws():
    legacy = (float(numpy_random.rand()), float(numpy_random.randn()))  # noqa: NPY002  what other people's code uses
    return random.random(), random.gauss(), legacy, torch.rand(2).tolist()


def test_a_resumed_run_draws_what_the_first_would_have():
    draws()
    saved = io.BytesIO()
    torch.save(RandomStates().state_dict(), saved)
    expected = [draws(), draws()]
    saved.seek(0)
    resumed = RandomStates()
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    draws()
    resumed.on_train_batch_start(None, None, None, 0)
    first = draws()
    resumed.on_train_batch_start(None, None, None, 1)
    assert [first, draws()] == expected
