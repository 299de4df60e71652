"""Clients as they come, pinned, against `millrace serve`: chat, stream, logprobs, errors, and how
often they ask again. The requests are counted by the server."""

import http.client
import os
import re
import subprocess
import threading
import time
import urllib.request

import pytest

import foreign
from jobs import ROOT

pytestmark = pytest.mark.long
CLIENTS = ROOT / "tests" / "blackbox" / "clients"
KEY = "sk-millrace-test"
NAMES = ("openai_python", "openai_node", "langchain_python", "litellm_python")


@pytest.fixture(scope="module")
def environment():
    return foreign.venv("clients", CLIENTS / "requirements.txt")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from conftest import Starter
    starter = Starter(tmp_path_factory.mktemp("serve"))
    yield starter.serve("--api-key", KEY)
    starter.finish()


@pytest.fixture(scope="module")
def full_server(tmp_path_factory):
    """One sequence runs and one waits, for ever: all others are refused as overloaded."""
    from conftest import Starter
    starter = Starter(tmp_path_factory.mktemp("full"))
    server = starter.serve("--api-key", KEY, "--null-engine", 2000, "--max-num-seqs", 1,
                           "--max-queue", 1)
    try:
        body = b'{"prompt": "x", "max_tokens": 900, "ignore_eos": true, "stream": true}'
        loading = answers(server).get(503, 0)  # to looks at /health while it started
        for _ in range(8):
            threading.Thread(target=request, args=(server, "/v1/completions", body),
                             daemon=True).start()
        end = time.monotonic() + 60
        while True:
            refused = answers(server).get(503, 0) - loading
            still_open = int(re.search(r"millrace:open_calls\{[^}]*\} (\d+)", metrics(server))[1])
            if refused > 0 and refused + still_open == 8:
                break
            assert time.monotonic() < end, (refused, still_open)
            time.sleep(0.1)
        yield server
    finally:
        server.kill()


def request(server, path, body=None):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(
                server.base + path, body, headers)) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException):
        return b""  # refused, or the server was ended


def metrics(server):
    return request(server, "/metrics").decode()


def answers(server):
    """Answers by status, those to /metrics left out."""
    found = re.findall(r'millrace:http_answers_total\{.*status="(\d+)"\} (\d+)', metrics(server))
    return {int(status): int(count) for status, count in found}


def run(environment, name, server, what, key=KEY):
    script = next(CLIENTS.glob(name + ".*"))
    if script.suffix == ".mjs":
        program, modules = foreign.node(environment)
    else:
        program, modules = environment / "bin" / "python", ""
    before = answers(server)
    ended = subprocess.run(
        [program, script, f"{server.base}/v1", key, what], capture_output=True, text=True,
        timeout=300, env={**os.environ, "MILLRACE_NODE_MODULES": str(modules), "HOME": str(environment),
                          "LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    after = answers(server)
    seen = {status: count - before.get(status, 0) for status, count in after.items()}
    seen[200] = seen.get(200, 0) - 1  # the first look at the metrics
    return {status: count for status, count in seen.items() if count}


@pytest.mark.parametrize("name", NAMES)
def test_chat_stream_and_logprobs(environment, server, name):
    assert run(environment, name, server, "use") == {200: 2}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what, status, key", [
    ("bad", 400, KEY), ("unknown", 404, KEY), ("key", 401, "sk-wrong")])
def test_an_error_that_stays_is_asked_once(environment, server, name, what, status, key):
    assert run(environment, name, server, what, key) == {status: 1}


@pytest.mark.parametrize("name", NAMES)
def test_an_overloaded_server_is_asked_again(environment, full_server, name):
    times = 1 if name == "litellm_python" else 3  # LiteLLM asks once unless told num_retries
    assert run(environment, name, full_server, "busy")[503] == times
