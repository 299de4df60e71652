"""Fixtures of the black-box tests: they start the built program and look at it from outside."""

import pytest

from jobs import MODEL, PROGRAM, Job, Server


def pytest_sessionstart(session):
    for path, remedy in ((PROGRAM, "build it"), (MODEL, "scripts/demo.sh brings it")):
        if not path.exists():
            pytest.exit(f"{path} is not there: {remedy} (scripts/test.sh does all)", returncode=3)


class Starter:
    """Starts jobs for one test and, after it, insists that nothing of them is left."""

    def __init__(self, folder):
        self.folder = folder
        self.jobs = []

    def job(self, words, **options):
        self.jobs.append(Job(words, self.folder, **options))
        return self.jobs[-1]

    def run(self, words, timeout=600, **options):
        """Starts and waits: (exit code, standard output, standard error). Nothing may be left."""
        job = self.job(words, **options)
        code = job.wait(timeout)
        job.assert_nothing_left()
        return code, job.stdout, job.stderr

    def serve(self, *arguments, **layout):
        self.jobs.append(Server(self.folder, *arguments, **layout))
        return self.jobs[-1]

    def finish(self):
        for job in self.jobs:
            try:
                if job.process.poll() is None:
                    job.process.terminate()
                    job.wait(60)
                job.assert_nothing_left()
            finally:
                job.kill()


@pytest.fixture
def start(tmp_path):
    starter = Starter(tmp_path)
    yield starter
    starter.finish()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One `millrace serve` in mode 1 for all tests of a file."""
    starter = Starter(tmp_path_factory.mktemp("serve"))
    yield starter.serve()
    starter.finish()
