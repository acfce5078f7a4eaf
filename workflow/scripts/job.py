"""What every script shares: its log, its share of the processor, progress on the terminal, and errors in one line."""

from __future__ import annotations

import gc
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a script's body: log first, threads as the rule was given, and no traceback for bad input."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(snakemake.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A CPU's kernels are compiled for each new width of a batch; kept by the thousand, they take gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    # Looking for cyclic garbage at every 700 new objects, the default, took about a tenth of a scoring job of the demo.
    gc.set_threshold(50_000)
    name = " ".join([snakemake.rule, *snakemake.wildcards])
    terminal = sys.stderr
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    from shallow_signals.files import InputError
    from shallow_signals.gpu_claim import claim_gpus
    from shallow_signals.log_stream import LogStream

    with path.open("w", encoding="utf-8", buffering=1) as log:
        slurm = os.environ.get("SLURM_JOB_ID")
        where = f"host {platform.node()}" + (f", SLURM job {slurm}" if slurm else "")
        print(f"{name}: {where}, process {os.getpid()}, threads {snakemake.threads}", file=log)
        sys.stdout = sys.stderr = LogStream(log, terminal, name)  # type: ignore[assignment]
        try:
            if gpus := snakemake.resources.get("gpu", 0):
                claimed = claim_gpus(gpus // snakemake.resources.get("nodes", 1))
                print(f"devices {','.join(claimed)}")
            yield
        except InputError as error:
            print(f"error: {error}", file=log)
            print(f"{name}: {error}", file=terminal)
            sys.exit(1)
        except Exception as error:
            traceback.print_exc(file=log)
            print(f"{name}: {type(error).__name__}: {error} (log: {path})", file=terminal)
            sys.exit(1)
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
