"""Which of a workstation's GPUs a job uses: Snakemake counts them, but says no job which ones are its own.

A job holds a lock on one file for each of its devices. The kernel gives a lock up when its process ends, however it
ends: nothing is left to clean, and no device is lost to a killed job. A cluster's scheduler hands devices out itself.
"""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from shallow_signals.files import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[IO[str]] = []  # open files, and with them the locks, for as long as this process lives


def claim_gpus(count: int, say: Callable[[str], None] = print) -> list[str]:
    """Take `count` free devices for this process and its children (through CUDA_VISIBLE_DEVICES); wait for them.

    A SLURM job that sees what it asked for has it to itself; one that sees more is an allocation whose jobs share it.
    An `InputError` where fewer are there than asked for.
    """
    devices = visible_devices(os.environ)
    if len(devices) < count:
        raise InputError(
            f"{count} GPUs asked for, {len(devices)} here ({VISIBLE}, nvidia-smi): set them in the profile"
        )
    if "SLURM_JOB_ID" not in os.environ or len(devices) > count:
        devices = _lock(count, devices, lock_folder(), say)
        os.environ[VISIBLE] = ",".join(devices)
    return devices


def held_locks() -> tuple[int, ...]:
    """The locks' file descriptors: a child that is given them keeps the devices, should only this process be killed."""
    return tuple(file.fileno() for file in _held)


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """The devices that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all of this machine."""
    if VISIBLE in environment:
        return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()


def lock_folder() -> Path:
    """Where this user's locks lie: one place a machine, so that several clones share its devices.

    A SLURM allocation has its own: its devices may be numbered from 0, like those of the next.
    """
    place = f"slurm-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else "machine"
    folder = Path(tempfile.gettempdir()) / f"shallow-signals-gpus-{os.getuid()}-{place}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _lock(count: int, devices: list[str], folder: Path, say: Callable[[str], None]) -> list[str]:
    """All or nothing, so that no two jobs wait for each other; a random pause, so that they don't meet again."""
    waited = False
    while True:
        taken = {}
        for device in devices:
            file = (folder / f"{device.replace('/', '-')}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            taken[device] = file
            if len(taken) == count:
                _held.extend(taken.values())
                return list(taken)
        for file in taken.values():
            file.close()
        if not waited:
            say(f"waiting for {count} of the GPUs {', '.join(devices)}: other jobs hold them")
            waited = True
        time.sleep(random.uniform(0.2, 1.0))
