"""Finished batches on disk, so that an interrupted run goes on where it was.

A batch is one file, complete or absent. Its composition follows from the run's plan, not from what was finished before,
so that a batch made after an interruption goes through the same arithmetic as it would have without.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from shallow_signals.data.pairs import content_id
from shallow_signals.decoding.batch import Job, Settings
from shallow_signals.decoding.records import Generation, from_table, to_table
from shallow_signals.files import InputError, read_parquet, write_json, write_parquet

PLAN = "plan.json"


class Shards:
    """The batches of one run in a folder.

    The folder remembers the plan (prompts, strategies, settings); that of another run is an `InputError`. The models'
    weights are the caller's to tell apart: name the folder by them.
    """

    def __init__(self, folder: Path, batches: Sequence[Sequence[Job]], settings: Settings) -> None:
        self.folder = folder
        plan = {
            "responses": sum(map(len, batches)),
            "shards": len(batches),
            "hash": content_id(
                dataclasses.asdict(settings),
                [
                    [[j.prompt_id, list(map(int, j.prompt)), j.sample, j.strategy.name] for j in jobs]
                    for jobs in batches
                ],
            ),
        }
        file = folder / PLAN
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_json(file, plan)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: unreadable; remove the folder to start afresh") from error
        else:
            if found != plan:
                raise InputError(f"{folder}: holds responses of another run; remove it, or name another folder")
        for leftover in folder.glob(".*.partial"):  # what a killed process was writing
            leftover.unlink()

    def path(self, number: int) -> Path:
        """The file of a batch."""
        return self.folder / f"shard-{number:05d}.parquet"

    def read(self, number: int) -> list[Generation] | None:
        """The responses of a finished batch; None where it is still to be made."""
        return from_table(read_parquet(self.path(number))) if self.path(number).is_file() else None

    def write(self, number: int, generations: Sequence[Generation]) -> None:
        """Keep a finished batch."""
        write_parquet(self.path(number), to_table(generations))
