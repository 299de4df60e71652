"""Processes that die: every client gets an end in time, the message names the rank, and nothing is
left running (the table of docs/architecture.md)."""

import http.client
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest

from jobs import MODEL_NAME, TINY

CLIENT_END_SECONDS = 1.0  # promised: from the death to the end of every open stream
WORKER_LOST = 6


class Stream(threading.Thread):
    """A streaming completion read in the background; knows when its end came and what it was.
    Without `begin` it is asked for, and read from begin() on."""

    def __init__(self, server, max_tokens=1500, begin=True):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        body = {"model": MODEL_NAME, "prompt": "Once upon a time", "max_tokens": max_tokens,
                "ignore_eos": True, "stream": True, "temperature": 0}
        self.connection.request("POST", "/v1/completions", json.dumps(body),
                                {"Content-Type": "application/json"})
        self.events, self.started, self.ended_at = [], threading.Event(), None
        if begin:
            self.begin()

    def begin(self):
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200
        self.start()

    def run(self):
        try:
            while line := self.answer.readline():
                if line.startswith(b"data: "):
                    self.events.append(line[6:].strip().decode())
                    if len(self.events) >= 4:
                        self.started.set()
        except (OSError, http.client.HTTPException):
            pass
        self.ended_at = time.monotonic()

    @property
    def complete(self):
        return self.events[-1] == "[DONE]"

    @property
    def text(self):
        """Of every event but the last."""
        return [json.loads(event)["choices"][0]["text"] for event in self.events[:-1]]

    @property
    def error(self):
        """The error object of the last event, or None."""
        last = json.loads(self.events[-1]) if not self.complete else {}
        return last.get("error")


def open_streams(server, count=3):
    streams = [Stream(server) for _ in range(count)]
    for stream in streams:
        assert stream.started.wait(120), server.stderr[-4000:]
    return streams


def kill(process):
    at = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    return at


def assert_ended_in_time(streams, killed_at, server):
    for stream in streams:
        stream.join(60)
        assert stream.ended_at is not None, "a client never got an end"
        assert stream.ended_at - killed_at <= CLIENT_END_SECONDS, server.stderr[-4000:]
        assert not stream.complete and stream.error, stream.events[-1]


@pytest.mark.parametrize("mode, rank", [(2, 0), (2, 1), (2, 3), (3, 0), (3, 1), (3, 3)])
def test_worker_is_killed_while_streaming(start, mode, rank):
    server = start.serve(mode=mode, tp=2, pp=2)
    streams = open_streams(server)
    killed_at = kill(server.worker(rank))
    assert_ended_in_time(streams, killed_at, server)
    code = server.wait(30)
    server.assert_nothing_left()
    if mode == 2:
        assert code == WORKER_LOST, server.stderr[-4000:]
    else:  # mpirun reports the first rank that ended badly: the killed one, or the coordinator
        assert code in (WORKER_LOST, 128 + signal.SIGKILL), server.stderr[-4000:]
    assert any(f"rank {rank}" in line.lower() and "lost" in line.lower() or
               f"rank {rank}" in line.lower() and "died" in line.lower()
               for line in server.stderr.splitlines()), server.stderr[-4000:]


@pytest.mark.parametrize("mode", [2, 3])
def test_mpirun_is_killed(start, mode):
    server = start.serve(mode=mode, tp=2, pp=2)
    streams = open_streams(server, 1)
    launchers = [p for p in server.processes() if os.path.basename(p.argv[0]) == "mpirun"]
    assert len(launchers) == 1
    kill(launchers[0])
    for stream in streams:
        stream.join(60)
        assert stream.ended_at is not None, "a client never got an end"
    assert server.wait(30) != 0
    server.assert_nothing_left()


def test_coordinator_is_killed(start):
    """Workers see the end of their link: nothing is left running."""
    server = start.serve(mode=2, tp=2, pp=2)
    streams = open_streams(server, 1)
    server.process.kill()
    streams[0].join(60)
    assert streams[0].ended_at is not None
    server.process.wait()
    server.assert_nothing_left()


@pytest.mark.parametrize("count, tokens", [(16, 800), pytest.param(200, 600,
                                                                  marks=pytest.mark.long)])
@pytest.mark.parametrize("layout", [{}, {"mode": 2, "tp": 2}, {"mode": 3, "pp": 2}],
                         ids=["mode1", "mode2", "mode3"])
def test_a_drain_ends_every_stream_whole(start, layout, count, tokens):
    server = start.serve("--max-num-seqs", count // 4, "--max-model-len", 2048,
                         "--shutdown-timeout", 300, model=TINY, **layout)
    alone = Stream(server, tokens)
    alone.join()
    streams = [Stream(server, tokens, begin=False) for _ in range(count)]
    still_open = 0
    for _ in range(100):  # until all are taken, long before the first ends
        with urllib.request.urlopen(f"{server.base}/load") as answer:
            still_open = json.load(answer)["server_load"]
        if still_open == count:
            break
    # A few streams may have ended before a busy machine comes to ask; of many most are open.
    assert still_open > count // 2 or count < 100
    # mpirun would end its ranks two seconds after a SIGTERM; this signal it hands on.
    server.process.send_signal(signal.SIGUSR1 if layout.get("mode") == 3 else signal.SIGTERM)
    refused = None
    while refused is None:  # until the signal has come through
        try:
            urllib.request.urlopen(f"{server.base}/health", timeout=30).close()
        except urllib.error.HTTPError as error:
            refused = error
            assert error.code == 503 and error.headers["Retry-After"]
            assert json.load(error)["error"]["code"] == "draining"
        except OSError:  # it has ended already
            assert count < 100
            break
    for stream in streams:
        stream.begin()
    assert server.wait(300) == 0, server.stderr[-4000:]
    for stream in streams:
        stream.join(60)
        assert stream.complete, stream.events[-1:]
        assert stream.text == alone.text
    print(f"{count} streams of {tokens} tokens, {still_open} open at the signal")
    server.assert_nothing_left()
