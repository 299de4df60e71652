"""Starts millrace as a user would, in one of its three modes, and knows every process of a job.

Each job carries a random tag in its environment, which mpirun hands on to its ranks: a process
with the tag belongs to the job, whoever its parent is by now.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("MILLRACE", ROOT / "build" / "millrace")).resolve()
MODEL = Path(os.environ.get("MILLRACE_TEST_MODEL",
                            ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
TINY = ROOT / "tests/data/tiny-llama"  # random weights, thousands of tokens a second
MODEL_NAME = "smollm2"  # as --served-model-name

# Only against hangs: many times what a slow machine needs.
START_TIMEOUT = 300
RUN_TIMEOUT = 600

TAG = "MILLRACE_TEST_JOB"

MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1",
          "--mca", "btl_vader_single_copy_mechanism", "none"]


def command(verb, *arguments, mode=1, tp=1, pp=1, ranks=None, model=MODEL):
    """The command line of `millrace VERB MODEL ...` in mode 1, 2 or 3. `ranks`: what mpirun is
    told in mode 3, when it should disagree with the degrees."""
    words = [str(PROGRAM), verb, str(model), *map(str, arguments)]
    if mode != 1:
        words += ["-tp", str(tp), "-pp", str(pp)]
    if mode == 3:
        words = [*MPIRUN, "-np", str(tp * pp if ranks is None else ranks), *words]
    return words


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """One process of a job, as /proc shows it."""

    def __init__(self, pid, environment):
        self.pid = pid
        self.environment = environment
        self.argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        self.executable = os.readlink(f"/proc/{pid}/exe")
        self.started = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])

    @property
    def rank(self):
        return int(self.environment.get("OMPI_COMM_WORLD_RANK", -1))

    def __repr__(self):
        return f"{self.pid} {' '.join(self.argv)[:160]} (rank {self.rank})"


class Job:
    """A started command. Output goes to files, so that nothing blocks on a full pipe."""

    def __init__(self, words, folder, stdin=b"", env=None):
        self.tag = uuid.uuid4().hex
        self.words = words
        name = f"job-{self.tag[:8]}"
        self.stdout_path, self.stderr_path = folder / f"{name}.out", folder / f"{name}.err"
        stdin_path = folder / f"{name}.in"
        stdin_path.write_bytes(stdin)
        environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                       "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **(env or {}), TAG: self.tag}
        with open(self.stdout_path, "wb") as out, open(self.stderr_path, "wb") as err, \
                open(stdin_path, "rb") as source:
            self.process = subprocess.Popen(words, stdin=source, stdout=out, stderr=err,
                                            env=environment, cwd=ROOT, start_new_session=True)

    @property
    def stdout(self):
        return self.stdout_path.read_text(errors="replace")

    @property
    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def wait(self, timeout=RUN_TIMEOUT):
        """The exit code; a job that outlives the timeout is ended and the test fails."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            alive = self.processes()
            self.kill()
            raise AssertionError(f"hung for {timeout} s: {' '.join(self.words)}\n"
                                 f"{alive}\n{self.stderr[-4000:]}") from None

    def processes(self):
        """Every living process of this job, the started one included."""
        mark = f"{TAG}={self.tag}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                raw = Path(f"/proc/{entry}/environ").read_bytes()
                if mark in raw.split(b"\0"):
                    pairs = (v.decode(errors="replace").partition("=") for v in raw.split(b"\0"))
                    found.append(Process(int(entry), {k: v for k, _, v in pairs}))
            except OSError:
                continue  # it ended while we looked, or is another user's
        return found

    def worker(self, rank):
        """The process that computes as this rank: of the rank's millrace processes the youngest
        (in mode 3 rank 0 has two, the coordinator and its child)."""
        ranks = [p for p in self.processes() if p.rank == rank and p.executable == str(PROGRAM)]
        assert ranks, f"no process of rank {rank} in {self.processes()}"
        return max(ranks, key=lambda p: (p.started, p.pid))

    def assert_nothing_left(self, within=5.0):
        """The job's processes are all gone within so many seconds (THREATS: 5 s after any kill)."""
        end = time.monotonic() + within
        while left := self.processes():
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"left running: {left}")
            time.sleep(0.05)

    def kill(self):
        for process in self.processes():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


class Server(Job):
    """`millrace serve` on a port of the test's own choice; ready when constructed."""

    def __init__(self, folder, *arguments, mode=1, tp=1, pp=1, model=MODEL, tls=None):
        self.port = free_port()
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.tls = tls  # an ssl.SSLContext, with the server's certificate
        super().__init__(command("serve", "--port", self.port, "--served-model-name", MODEL_NAME,
                                 *arguments, mode=mode, tp=tp, pp=pp, model=model), folder)
        end = time.monotonic() + START_TIMEOUT
        while not self.healthy():
            code = self.process.poll()
            if code is not None:
                raise AssertionError(f"serve ended with {code}:\n{self.stderr[-4000:]}")
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"not ready after {START_TIMEOUT} s:\n{self.stderr[-4000:]}")
            time.sleep(0.1)

    def healthy(self):
        try:
            with urllib.request.urlopen(f"{self.base}/health", timeout=5,
                                        context=self.tls) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, timeout=60):
        """Ends it as an operator would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)
