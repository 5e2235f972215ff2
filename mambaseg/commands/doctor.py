"""``mambaseg doctor``: what this machine has, and whether the scan kernels are right on it."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments (there are none)."""


def run(arguments: argparse.Namespace) -> int:
    """Print versions, devices and the kernel check; the status is 1 when the check fails."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from mambaseg.callbacks.provenance import code_version, package_versions
    from mambaseg.kernels import backend
    from mambaseg.kernels.self_check import TOLERANCE, scan_error

    console = Console()
    table = Table("what", "found", box=None, pad_edge=False)
    for name, version in package_versions().items():
        table.add_row(name, version)
    code = code_version()
    table.add_row("code", f"{code.version}, commit {code.git_sha or 'unknown'}{', changed' if code.git_dirty else ''}")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        table.add_row("GPU", f"{torch.cuda.get_device_name()}, bf16 {torch.cuda.is_bf16_supported()}")
    else:
        table.add_row("GPU", "none: training runs on the CPU, which suits the demo")
    for fact, value in backend.describe().items():
        table.add_row(fact, value)
    console.print(table)
    failed = False
    for device in devices:
        error = scan_error(device)
        ok = error < TOLERANCE
        failed |= not ok
        console.print(f"selective scan on {device.type}: relative error {error:.1e} {'ok' if ok else 'WRONG'}")
    console.print("Next: make train EXP=demo" if not failed else "Set MAMBASEG_SCAN_BACKEND=reference and report this.")
    return int(failed)
