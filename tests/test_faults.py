"""Errors from outside the code are told in one line."""

import torch

from mambaseg.faults import explain_fault

RECORDING = "CUDA error: operation failed due to a previous error during capture\nCUDA kernel errors might be ..."


def chained(first: Exception, second: RuntimeError) -> RuntimeError:
    """Return what is raised where the second error arises on the way out of the first."""
    try:
        try:
            raise first
        finally:
            raise second
    except RuntimeError as error:
        return error


def test_a_network_that_cannot_be_recorded_names_the_switch_and_the_first_cause() -> None:
    alone = explain_fault(RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"))
    assert alone is not None
    assert "(CUDA error: operation not permitted when stream is capturing)" in alone
    assert "model.init_args.cuda_graphs: false" in alone
    later = explain_fault(chained(ValueError("item() of a size"), RuntimeError(RECORDING)))
    assert later is not None
    assert "(item() of a size)" in later


def test_full_memory_while_recording_is_full_memory() -> None:
    told = explain_fault(chained(torch.OutOfMemoryError("Tried to allocate 2 GiB. More"), RuntimeError(RECORDING)))
    assert told is not None
    assert "memory is full (Tried to allocate 2 GiB)" in told


def test_streams_that_an_error_left_apart_do_not_hide_it() -> None:
    unjoined = RuntimeError("CUDA error: capturing stream has unjoined work\nmore")
    told = explain_fault(chained(torch.OutOfMemoryError("Tried to allocate 2 GiB. More"), unjoined))
    assert told is not None
    assert "memory is full (Tried to allocate 2 GiB)" in told


def test_other_errors_keep_their_traceback() -> None:
    assert explain_fault(RuntimeError("shapes do not fit")) is None
