# Functions that the rule files share; no rules here.
#
# `STUDY` is the validated configuration: a wrong key or value ends every call, dry-runs included, with the key, the
# value and what is allowed.

import json
import os
import sys
from functools import cache
from math import ceil
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from snakemake.exceptions import WorkflowError

from shallow_signals.config.load import ConfigError, load_study
from shallow_signals.config.truncation import HALVES
from shallow_signals.config.truncation import PATTERN as TRUNCATION_PATTERN
from shallow_signals.config.truncation import parse as parse_truncation
from shallow_signals.provenance import code_of
from shallow_signals.scheduling import keep_one_timer

try:
    STUDY = load_study(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

_pins = Path(workflow.basedir) / "pins.json"
PINS = json.loads(_pins.read_text()) if _pins.is_file() else {}


wildcard_constraints:
    dataset="[A-Za-z0-9_.]+",
    model="[A-Za-z0-9_.]+",
    experiment="[A-Za-z0-9_.]+",
    benchmark="(?!heldout)[A-Za-z0-9_.]+",
    probe="[A-Za-z0-9_.]+",
    implicit="[A-Za-z0-9_.]+",
    instructions="[A-Za-z0-9_.]+",
    comparison="[A-Za-z0-9_.]+",
    member=f"base|reference|{TRUNCATION_PATTERN}",
    decoding="[A-Za-z0-9_.]+",
    truncation=TRUNCATION_PATTERN,
    seed="[0-9]+",


def results(path):
    """A path below this run's results folder."""
    return f"results/{STUDY.run}/{path}"


def log_of(path):
    """A path below this run's logs, mirroring the results."""
    return f"logs/{STUDY.run}/{path}.log"


def benchmark_of(path):
    """A path below this run's timings, mirroring the results."""
    return f"results/{STUDY.run}/benchmarks/{path}.tsv"


def code(*modules, script):
    """A step's script and the library files that it can reach: its inputs, compared by content.

    An edit runs exactly the steps that use the file again; touching it, or a fresh clone, runs nothing.
    """
    own = os.path.join(workflow.basedir, "workflow", "scripts", f"{script}.py")
    return [os.path.relpath(path) for path in (own, *code_of(*modules))]


def plain(model):
    """A part of the configuration as the plain dictionary that a rule's params hold."""
    return model.model_dump(mode="json")


def pins_of(source):
    """The pinned revision of a hub source, from pins.json, where the configuration leaves it open."""
    repo = getattr(source, "repo", None)
    return {repo: PINS[repo]} if repo in PINS else {}


def site(key):
    """What the profile says of the machine (a name among its `default-resources`), or None."""
    declared = workflow.resource_settings.default_resources or {}
    return declared[key].raw if key in declared else None


def escalating(first, limit):
    """A resource of a first attempt, a number or a function of the wildcards, that doubles with each attempt.

    It grows up to the machine's `limit`, where the profile names one.
    """
    most = site(limit) or float("inf")
    at_first = first if callable(first) else lambda wildcards: first
    return lambda wildcards, attempt: min(at_first(wildcards) * 2 ** (attempt - 1), most)


def memory_for(minimum, gpus=1):
    """Megabytes for a first attempt of a step on each of up to `gpus` GPUs; later attempts get more."""
    return escalating(minimum * min(gpus, site("gpus_per_job") or 1), "node_mem_mb")


def minutes_for(minimum, output=None, gpus=1):
    """Minutes for a first attempt; later ones get more.

    On GPUs three times what the planner reckons for the output (a pattern below the results) on up to `gpus` of them is
    added, in half hours: it grows with the model and the tokens, and is an estimate.
    """
    if output is None or not site("gpus_per_job"):
        return escalating(minimum, "longest_runtime")
    shared = min(gpus, site("gpus_per_job"))
    return escalating(
        lambda wildcards: minimum + 30 * ceil(6 * planned_hours(output.format(**wildcards)) / shared),
        "longest_runtime",
    )


def planned_hours(output):
    """Hours of one GPU of the profile's model for an output; none where the planner knows neither card nor sizes."""
    from shallow_signals.files import InputError
    from shallow_signals.planning.report import CARDS, gpu_hours

    card = CARDS.get((site("gpu_type") or "").upper())
    try:
        return gpu_hours(planner().of(output), card) if card else 0.0
    except InputError:
        return 0.0


@cache
def planner():
    """The planner of this run."""
    from shallow_signals.planning.sizes import Sizes
    from shallow_signals.planning.planner import Planner

    return Planner(Sizes(STUDY, Path(results("."))))


def gpus(most):
    """The GPUs of a step that makes use of up to `most` in one node: `**gpus(1)` in its resources.

    The profile says how many a job may take (`gpus_per_job`) and, on a cluster, their model and partition. A profile
    that says nothing of GPUs runs every step on the CPU.
    """
    if not most or not site("gpus_per_job"):
        return {}
    asked = {
        "gpu": min(most, site("gpus_per_job")),
        "gpu_model": site("gpu_type"),
        "slurm_partition": site("gpu_partition"),
    }
    return {key: value for key, value in asked.items() if value is not None}


def shown_results():
    """Every table, figure and probe that the configuration selects."""
    names = STUDY.tables
    wanted = [
        name
        for name in ("table1", "table2", "table3", "table4", "controls", "verdicts")
        if getattr(names, name)
    ]
    paths = [results(f"tables/{name}.{suffix}") for name in wanted for suffix in ("csv", "md", "tex")]
    if reward_experiments():
        paths += [results(f"figures/reward_by_cut.{suffix}") for suffix in ("csv", "png", "pdf")]
    figures = [name for name in type(STUDY.figures).model_fields if getattr(STUDY.figures, name)]
    paths += [results(f"figures/{name}.{suffix}") for name in figures for suffix in ("csv", "png", "pdf")]
    if STUDY.figures.figure4:
        paths += [results(f"tables/dominance.{suffix}") for suffix in ("csv", "md", "tex")]
    paths += [
        results(f"probe/{name}.{suffix}") for name in STUDY.probe for suffix in ("csv", "json", "png", "pdf")
    ]
    return paths


def targets():
    """What `all` makes: what the run shows, its page, and the checks."""
    page = [results("README.md")] if STUDY.page else []
    return [*shown_results(), *page, *(results(f"checks/{name}.csv") for name in STUDY.checks)]


def unpinned():
    """Hub repositories whose revision is unknown, among those that the planned jobs read."""
    read_by = {
        "ingest_dataset": lambda w: STUDY.datasets[w.dataset].source,
        "prepare_instructions": lambda w: STUDY.instructions[w.instructions].source,
        "provide_model": lambda w: STUDY.models[w.model].source,
        "fetch_length_control": lambda w: STUDY.alpacaeval[w.comparison].length_control,
    }
    jobs = workflow.dag.needrun_jobs()
    sources = [read_by[job.rule.name](job.wildcards) for job in jobs if job.rule.name in read_by]
    hub = [s for s in sources if getattr(s, "repo", None) and not os.path.isdir(s.repo)]
    return sorted({s.repo for s in hub if s.revision is None and s.repo not in PINS})


def missing_keys():
    """Environment variables that hold the key of a service that a planned step will ask, and that are not set."""
    planned = {job.rule.name for job in workflow.dag.needrun_jobs()}
    asked = [
        STUDY.judges[STUDY.alpacaeval[c].judge] for c in comparisons() if f"judge_outputs_{c}" in planned
    ]
    keys = {judge.key_variable for judge in asked if judge.kind == "api"}
    return sorted(key for key in keys if not os.environ.get(key, "").strip())


def before_start():
    """Refuse to start (dry-runs pass) without a judge's key, with unknown revisions, or while old jobs still write here."""
    if missing_keys():
        raise WorkflowError(
            "no API key for the judge of Table 3: set the environment variable "
            + ", ".join(missing_keys())
            + ". It is asked for now, before anything is generated."
        )
    if STUDY.require_pinned and unpinned():
        raise WorkflowError(
            "no pinned revision for "
            + ", ".join(unpinned())
            + ". Run `make pin` on a machine that reaches the hub: "
            "it looks them up and keeps them in pins.json; or set `revision` in the configuration."
        )
    from shallow_signals.files import InputError
    from shallow_signals.slurm_queue import queued_jobs

    try:
        orphans = queued_jobs(Path.cwd())
    except InputError as error:  # SLURM's programs are there, but no cluster answers
        if not workflow.local_exec:
            raise WorkflowError(str(error)) from None
        orphans = []
    if orphans:
        raise WorkflowError(
            "an earlier call left jobs in the queue that write the same outputs: "
            + ", ".join(map(str, orphans))
            + ". Run `make resume`: it cancels them, unlocks the folder and goes on."
        )
