"""What the SLURM executor would submit: its own function on every job of a dry-run, no cluster asked.

`python tests/sbatch_lines.py [snakemake arguments]` prints one JSON line a submitted job: rule and sbatch line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from workflow_copy import Workflow


def set_site(profile: Path, **values: str | int) -> None:
    """Fill in a profile's site lines, as its user would in an editor; a key that is not there is an error."""
    text = profile.read_text(encoding="utf-8")
    for key, value in values.items():
        text, found = re.subn(rf"^(\s*{key}:) *\S+", rf"\g<1> {value}", text, flags=re.MULTILINE)
        assert found == 1, f"{profile} has {found} lines {key}"
    profile.write_text(text, encoding="utf-8")


def sbatch_lines(workflow: Workflow, *arguments: str) -> list[dict[str, Any]]:
    """Every job of a dry-run as the SLURM executor would submit it."""
    ended = subprocess.run(
        [sys.executable, __file__, *arguments],
        cwd=workflow.folder,
        env=workflow.environment(),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def parse(line: str) -> dict[str, str]:
    """The options of an sbatch line; each is given once."""
    found = re.findall(r"(?:^|\s)(--?[A-Za-z][\w-]*)(?:[= ]([^-\s]\S*))?", line)
    assert len({name for name, _ in found}) == len(found), line
    return dict(found)


def main() -> None:
    from snakemake import cli
    from snakemake.executors import dryrun
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    def run_job(executor: Any, job: Any) -> None:
        facts = {
            "run_uuid": "RUN",
            "slurm_logfile": "LOG",
            "comment_str": f"rule_{job.name}",
            "account": f"-A {job.resources.get('slurm_account')}",
            "partition": f"-p {job.resources.get('slurm_partition')}",
            "workdir": "FOLDER",
        }
        settings = executor.workflow.executor_settings
        line = get_submit_command(job, facts, settings=settings) + set_gres_string(job)
        if job.rule.name not in executor.workflow._localrules:
            print(json.dumps({"rule": job.rule.name, "line": line}), flush=True)
        submit(executor, job)

    submit = dryrun.Executor.run_job
    dryrun.Executor.run_job = run_job
    parser, args = cli.parse_args(["--dry-run", *sys.argv[1:]])
    sys.exit(not cli.args_to_api(args, parser))


if __name__ == "__main__":
    main()
