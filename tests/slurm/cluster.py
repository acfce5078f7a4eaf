"""A real SLURM cluster on this machine, on loopback: munge, MariaDB, slurmdbd, slurmctld, five slurmd with fake GPUs.

`python tests/slurm/cluster.py` starts it, prints `ready` and tears everything down when its standard input closes (or
at SIGINT or SIGTERM): a test run that is killed leaves no cluster behind. It needs root and the packages PACKAGES.

Nodes: a100-1, a100-2 (4 GPUs each), h100-1, h100-2 (8 each) in the partition `gpu`; cpu-1 in `cpu`. Account: `study`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = "slurm-wlm slurm-wlm-basic-plugins slurmdbd munge mariadb-server"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
SITE = Path("/etc/slurm")  # jobs drop SLURM_CONF, so the configuration must be where SLURM looks by itself
FILES = ("slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf")
ACCOUNT = "study"
PARTS = Path(__file__).resolve().parent / "etc"


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install --no-install-recommends {PACKAGES}"
    if os.geteuid() != 0:
        return "the test cluster needs root"
    for name in FILES:
        path = SITE / name
        if path.exists() and not path.is_symlink():
            return f"{path} is there: this machine belongs to another cluster"
    return None


class Lab:
    """The folder, the configuration and the daemons of one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self) -> None:
        """Configuration, daemons in the order of their needs, an account; returns when every node is idle."""
        for name in ("run", "log", "state", "spool", "dev", "db", "etc"):
            (self.folder / name).mkdir(mode=0o755)
        for i in range(8):
            os.mknod(self.folder / f"dev/nvidia{i}", stat.S_IFCHR | 0o666, os.makedev(195, i))
        self._configure()
        self._start_munge()
        self._start_database()
        self._daemon("slurmdbd", "slurmdbd", "-D")
        self._until(lambda: succeeds("sacctmgr", "-n", "list", "cluster"), "slurmdbd answers")
        for words in (
            ["cluster", "lab"],
            ["account", ACCOUNT, "Cluster=lab"],
            ["user", "root", f"Account={ACCOUNT}", "Cluster=lab", f"DefaultAccount={ACCOUNT}", "AdminLevel=Admin"],
        ):
            subprocess.run(["sacctmgr", "-i", "add", *words], check=True, stdout=subprocess.DEVNULL)
        self._daemon("slurmctld", "slurmctld", "-D", "-i")
        for node in ("a100-1", "a100-2", "h100-1", "h100-2", "cpu-1"):
            (self.folder / "spool" / node).mkdir()
            self._daemon(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._until(lambda: node_states() == ["idle"] * 5, "all five nodes are idle")

    def stop(self) -> None:
        """Cancel what runs, end the daemons in reverse order and remove every trace."""
        if any(name == "slurmctld" for name, _ in self.daemons):
            with contextlib.suppress(subprocess.TimeoutExpired, RuntimeError):
                subprocess.run(["scancel", "--signal=KILL", "--user=root"], timeout=20, capture_output=True)
                subprocess.run(["scancel", "--user=root"], timeout=20, capture_output=True)
                self._until(lambda: output("squeue", "--noheader") == "", "the queue is empty", seconds=20)
        for process in job_processes():  # without control groups SLURM loses sight of children on a lost node
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for _, process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in FILES:
            path = SITE / name
            if path.is_symlink() and path.readlink().is_relative_to(self.folder):
                path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        for name in FILES:
            text = (PARTS / name).read_text(encoding="utf-8")
            text = text.replace("@LAB@", str(self.folder)).replace("@HOST@", socket.gethostname().split(".")[0])
            path = self.folder / "etc" / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)
            (SITE / name).unlink(missing_ok=True)
            (SITE / name).symlink_to(path)

    def _start_munge(self) -> None:
        key, run = self.folder / "munge.key", self.folder / "run"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {
            "socket": run / "munge.sock",
            "key-file": key,
            "pid-file": run / "munged.pid",
            "log-file": self.folder / "log/munged-own.log",
            "seed-file": self.folder / "munge.seed",
        }
        self._daemon("munged", "munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in places.items()))
        self._until((run / "munge.sock").exists, "munged listens")

    def _start_database(self) -> None:
        data = f"--datadir={self.folder}/db"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=root", data, "--skip-test-db"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        start = self.folder / "etc" / "start.sql"
        start.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1' IDENTIFIED BY 'lab';\n"
        )
        self._daemon(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", data, f"--init-file={start}",
            "--bind-address=127.0.0.1", "--port=13306", "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0",
            f"--socket={self.folder}/run/mariadb.sock", f"--pid-file={self.folder}/run/mariadb.pid",
        )  # fmt: skip
        self._until(lambda: listens(13306), "MariaDB listens")

    def _daemon(self, name: str, *command: str) -> None:
        log = (self.folder / "log" / f"{name}.out").open("wb")
        process = subprocess.Popen(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        self.daemons.append((name, process))

    def _until(self, condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
        """Wait for a condition; the first daemon that ended, or that is waited for, tells why in vain."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [name for name, process in self.daemons if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                name = ended[0] if ended else self.daemons[-1][0]
                logs = (self.folder / "log").glob(f"{name}*")
                tail = "\n".join(p.read_text(errors="replace")[-2000:] for p in logs)
                raise RuntimeError(f"not reached: {what} ({name}{' ended' if ended else ''})\n{tail}")
            time.sleep(0.3)


def job_processes() -> list[int]:
    """Processes on this machine that belong to jobs of the cluster, by the environment that SLURM gives a job."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"SLURM_CLUSTER_NAME=lab" in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def node_states() -> list[str]:
    """The state of each node, as sinfo says it."""
    return output("sinfo", "--noheader", "-N", "--format=%T").split()


def output(*command: str) -> str:
    """What a command prints; empty where it fails or hangs."""
    with contextlib.suppress(subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return ""


def succeeds(*command: str) -> bool:
    """Whether a command ends well, soon."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    return False


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections at a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """One cluster a machine at a time: its ports and /etc/slurm are the machine's. Waits for its turn."""
    SITE.mkdir(exist_ok=True)
    folder = os.open(SITE, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def main() -> None:
    why = missing()
    if why:
        sys.exit(why)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with only_one():
        lab = Lab(Path(tempfile.mkdtemp(prefix="slurm-")))
        try:
            lab.folder.chmod(0o755)
            lab.start()
            print("ready", flush=True)
            sys.stdin.read()
        except KeyboardInterrupt:
            pass
        finally:
            lab.stop()


if __name__ == "__main__":
    main()
