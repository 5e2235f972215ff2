"""Progress: one bar over the run on a terminal, plain lines elsewhere."""

import io
import re

from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from mambaseg.callbacks.progress import RunProgress, clock_time
from tests.callbacks.conftest import StubData, StubModule, make_trainer


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=140)


def fit(run, progress):
    make_trainer(run, [progress], enable_progress_bar=True).fit(StubModule(), datamodule=StubData())


def test_lines_elsewhere(run):
    progress = RunProgress(line_every_seconds=0.0, losses=("loss", "loss/unet", "absent"))
    progress.console = console(terminal=False)
    fit(run, progress)
    lines = progress.console.file.getvalue().splitlines()
    assert "\x1b" not in "".join(lines)
    assert [line.split()[1] for line in lines] == ["1/6", "2/6", "3/6", "3/6", "4/6", "5/6", "6/6", "6/6"]
    assert re.search(
        r"step 2/6  [\d.]+ it/s  0:00:00 gone  0:00:00 left  loss \d\.\d{4}  loss/unet \d\.\d{4}$", lines[1]
    )
    assert re.search(r"  val/dice 0\.\d{4}$", lines[-1])
    assert "absent" not in "".join(lines)


def test_lines_come_only_now_and_then(run):
    progress = RunProgress(line_every_seconds=3600)
    progress.console = console(terminal=False)
    fit(run, progress)
    lines = progress.console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["3/6", "6/6"], "after each validation"


def test_bar_on_a_terminal_covers_the_whole_run(run):
    progress = RunProgress(refresh_every_seconds=0.0)
    progress.console = console(terminal=True)
    fit(run, progress)
    shown = progress.console.file.getvalue()
    assert "6/6" in shown
    assert "━" in shown
    assert "it/s" in shown
    assert progress._bar is None


def test_time_left_is_the_pace_of_this_session(run):
    progress = RunProgress(line_every_seconds=0.0)
    progress.console = console(terminal=False)
    seconds = iter(range(0, 10_000, 60))
    progress.now = lambda: float(next(seconds))
    checkpoint = ModelCheckpoint(run / "checkpoints", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    trainer = make_trainer(run, [progress, checkpoint], enable_progress_bar=True, enable_checkpointing=True)
    trainer.fit(StubModule(), datamodule=StubData())
    saved = run / "checkpoints" / "step=4.ckpt"
    resumed = RunProgress(line_every_seconds=0.0)
    resumed.console = console(terminal=False)
    resumed.now = progress.now
    trainer = make_trainer(run, [resumed], enable_progress_bar=True, max_steps=8)
    trainer.fit(StubModule(), datamodule=StubData(), ckpt_path=saved, weights_only=True)
    first = resumed.console.file.getvalue().splitlines()[0]
    gone, left = (int(h) * 60 + int(m) for h, m, _ in re.findall(r"(\d+):(\d\d):(\d\d)", first))
    assert first.startswith("step 5/8")
    assert left == 3 * gone


def test_a_run_without_an_end_has_no_time_left(run):
    progress = RunProgress(line_every_seconds=0.0)
    progress.console = console(terminal=False)
    trainer = make_trainer(run, [progress], enable_progress_bar=True, max_steps=-1, max_time={"seconds": 2})
    trainer.fit(StubModule(), datamodule=StubData())
    text = progress.console.file.getvalue()
    assert text.startswith("step 1  ")
    assert "left" not in text


def test_validate_test_and_predict_close_their_bars(run):
    progress = RunProgress()
    progress.console = console(terminal=True)
    trainer = make_trainer(run, [progress], enable_progress_bar=True)
    trainer.validate(StubModule(), datamodule=StubData(), verbose=False)
    trainer.test(StubModule(), datamodule=StubData(), verbose=False)
    shown = progress.console.file.getvalue()
    assert "validate 4/4" in shown
    assert "test 4/4" in shown
    assert progress._bar is None


def test_terminal_is_given_back_after_an_error(run):
    class Failing(StubModule):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError("on purpose")

    progress = RunProgress()
    progress.console = console(terminal=True)
    trainer = make_trainer(run, [progress], enable_progress_bar=True)
    try:
        trainer.fit(Failing(), datamodule=StubData())
    except ArithmeticError:
        assert progress._bar is None
    else:
        raise AssertionError("the error was swallowed")


def test_clock_time():
    assert clock_time(3725.4) == "1:02:05"
