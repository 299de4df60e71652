"""Clients that mean harm or just vanish, beside one that does not: its greedy bytes stay the same,
and the server gets back every KV block, descriptor and megabyte. A small share in CI, the numbers
of the promise in scripts/check_all.sh."""

import http.client
import json
import os
import random
import re
import resource
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import MODEL_NAME, TINY

VOCABULARY = 512  # of the tiny model
GOOD = {"model": MODEL_NAME, "prompt": list(range(3, 40)), "max_tokens": 40, "temperature": 0,
        "ignore_eos": True, "return_token_ids": True}
MEMORY_SLACK = 4  # MiB that one more round of a load may leave behind
MAX_ROUNDS = 6
PATIENCE = 300  # only against hangs


def long(count):
    return pytest.param(count, marks=pytest.mark.long)


@pytest.fixture(scope="module", autouse=True)
def descriptors_for_us():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(start, cache="8MiB"):
    """With a cache that is soon in memory to its last page."""
    return start.serve("--max-model-len", 2048, "--kv-cache-memory", cache, model=TINY)


def ask(server, path, body=None, method=None):
    """(status, bytes) over a connection of its own; a body may be bytes already."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        body = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method or ("GET" if body is None else "POST"), path, body,
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def good_answer(server):
    status, body = ask(server, "/v1/completions", GOOD)
    while status == 503:  # so many wait before it that it is to come again
        assert json.loads(body)["error"]["code"] == "overloaded"
        time.sleep(0.5)
        status, body = ask(server, "/v1/completions", GOOD)
    assert status == 200, body
    return json.loads(body)["choices"]


class GoodClient:
    """Asks the same again and again, while the block runs and once after it."""

    def __init__(self, server):
        self.server, self.quiet = server, good_answer(server)
        self.done, self.answers, self.trouble = threading.Event(), 0, None

    def _run(self):
        try:
            while not self.done.is_set():
                assert good_answer(self.server) == self.quiet
                self.answers += 1
        except Exception as trouble:  # told by the test's own thread
            self.trouble = trouble

    def __enter__(self):
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        if self.trouble:
            raise self.trouble
        assert self.answers > 0
        assert good_answer(self.server) == self.quiet


def figures(server):
    _, text = ask(server, "/metrics")
    return {name: float(value) for name, value in
            re.findall(r"^(?:millrace):(\w+)\{[^,}]*,engine=\"0\"\} (\S+)$", text.decode(), re.M)}


def aborted(server):
    _, text = ask(server, "/metrics")
    return float(re.search(rb'request_success_total\{.*finished_reason="abort"\} (\S+)', text)[1])


def resident(server):
    with open(f"/proc/{server.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Held:
    """What the server holds when nobody asks; given back, or the test fails with what is not."""

    def __init__(self, server):
        self.server = server
        self.descriptors = self.wait()

    def wait(self, most=None):
        end = time.monotonic() + PATIENCE
        while True:
            now = figures(self.server)
            open_files = len(os.listdir(f"/proc/{self.server.process.pid}/fd"))
            idle = (now["open_calls"], now["num_requests_running"], now["num_requests_waiting"],
                    now["kv_cache_usage_perc"]) == (0, 0, 0, 0) and now["connections"] == 1
            if idle and (most is None or open_files <= most):
                return open_files
            assert time.monotonic() < end, (now, open_files, most)
            time.sleep(0.1)

    def assert_given_back(self):
        self.wait(most=self.descriptors)


def hold_and_check(server, load, count):
    """The load beside a good client, again and again until a round leaves the memory where it was:
    what malloc and the cache keep they keep once, what leaks is more every time."""
    held, grown = Held(server), []
    for _ in range(MAX_ROUNDS):
        before = resident(server)
        with GoodClient(server) as good:
            load(server, count)
        held.assert_given_back()
        grown.append((resident(server) - before) / 2**20)
        if grown[-1] <= MEMORY_SLACK:
            break
    print(f"{count}: good answers {good.answers}, descriptors {held.descriptors}, resident "
          f"{resident(server) >> 20} MiB, by round {grown}")
    assert grown[-1] <= MEMORY_SLACK, grown
    assert server.process.poll() is None


def connect(server, number=0, receive_buffer=None):
    """From an address of its own for every 500: one address may not have so many."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.bind((f"127.0.{1 + number // 500 // 250}.{1 + number // 500 % 250}", 0))
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", server.port))
    return client


def request_bytes(body, path="/v1/completions"):
    body = json.dumps(body).encode()
    return (f"POST {path}".encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            b"\r\nContent-Length: %d\r\n\r\n" % len(body)) + body


def streams_nobody_reads(server, count):
    body = request_bytes({"model": MODEL_NAME, "messages": [{"role": "user", "content": "a"}],
                          "max_tokens": 1900, "logprobs": True, "top_logprobs": 20,
                          "ignore_eos": True, "stream": True}, "/v1/chat/completions")
    before = aborted(server)
    clients = [connect(server, i, receive_buffer=4096) for i in range(count)]
    for client in clients:
        client.sendall(body)
    end = time.monotonic() + PATIENCE
    while aborted(server) < before + count:  # each was dropped on its way
        assert time.monotonic() < end, figures(server)
        time.sleep(0.2)
    for client in clients:
        data = b""
        try:
            while piece := client.recv(1 << 20):
                data = data[-100:] + piece
        except ConnectionResetError:
            pass
        assert b"[DONE]" not in data
        client.close()


@pytest.mark.parametrize("count", [8, long(500)])
def test_streams_that_nobody_reads_are_dropped(start, count):
    hold_and_check(serve(start, "64MiB" if count > 64 else "16MiB"), streams_nobody_reads, count)


def slow_sockets(server, count):
    clients = [connect(server, i) for i in range(count)]
    for i, client in enumerate(clients):
        if i % 3 == 0:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        elif i % 3 == 1:
            client.sendall(request_bytes({"prompt": "x" * 3000})[:400])
    assert figures(server)["connections"] >= count
    for i, client in enumerate(clients):
        data = b""
        while piece := client.recv(4096):
            data += piece
        # Whoever began a request is told; the silent are just closed.
        assert data.startswith(b"HTTP/1.1 408 ") if i % 3 != 2 else data == b""
        client.close()


@pytest.mark.parametrize("count", [long(5000)])  # CI has ServerLimits.ASlowHeadIsTimedOut
def test_slow_sockets_are_closed_in_time(start, count):
    hold_and_check(serve(start), slow_sockets, count)


def random_disconnects(server, count):
    def one(number):
        chance = random.Random(number)
        body = {"model": MODEL_NAME, "prompt": chance.choices(range(3, VOCABULARY), k=chance.randint(
            1, 200)), "max_tokens": chance.randint(1, 300), "n": chance.choice([1, 1, 1, 4]),
            "ignore_eos": True, "stream": chance.random() < 0.7, "seed": number}
        data = request_bytes(body)
        client = connect(server, number)
        if chance.random() < 0.5:  # RST instead of FIN
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if chance.random() < 0.3:
            data = data[:chance.randint(0, len(data) - 1)]
        client.sendall(data)
        time.sleep(chance.choice([0, 0, 0.001, 0.01, 0.05]))
        if chance.random() < 0.3:
            client.setblocking(False)
            try:
                client.recv(chance.randint(1, 5000))
            except BlockingIOError:
                pass
        client.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(count)))


@pytest.mark.parametrize("count", [200, long(10_000)])
def test_random_disconnects_leave_nothing(start, count):
    hold_and_check(serve(start), random_disconnects, count)


# --- a client that tries every limit

RANGES = {"max_tokens": (1, 40), "max_completion_tokens": (1, 40), "min_tokens": (0, 40),
          "n": (1, 128), "temperature": (0, 2), "top_p": (0, 1), "top_k": (-1, 2**31 - 1),
          "min_p": (0, 1), "repetition_penalty": (0.01, 100), "presence_penalty": (-2, 2),
          "frequency_penalty": (-2, 2), "seed": (-2**63, 2**63 - 1), "logprobs": (0, 20),
          "top_logprobs": (0, 20), "priority": (-2**31, 2**31 - 1), "best_of": (0, 1),
          "prompt_logprobs": (0, 20), "truncate_prompt_tokens": (1, 40)}
NOT_NUMBERS = ["NaN", "Infinity", "1e400", "-1e400", "9223372036854775808", "1" * 400, '"1"', "[]",
               "{}", "null", "true", "-0", "0.5", "-1"]
IDS = [-1, 0, VOCABULARY - 1, VOCABULARY, 2**31 - 1, 2**31, 2**63, -2**63]


def hostile_bodies():
    """(route, body as bytes): well-formed or not."""
    def with_field(name, value, route="/v1/completions", **more):
        limit = {} if name in ("max_tokens", "max_completion_tokens") else {"max_tokens": 4}
        body = json.dumps({"model": MODEL_NAME, **limit, **more})
        if "chat" not in route:
            body = body[:-1] + ', "prompt": "a"}'
        else:
            body = body[:-1] + ', "messages": [{"role": "user", "content": "a"}]}'
        return route, f'{body[:-1]}, "{name}": {value}}}'.encode()

    for route in ("/v1/completions", "/v1/chat/completions"):
        for name, (least, most) in RANGES.items():
            values = [least, most, least - 1, most + 1, 2**63, -2**63 - 1]
            for value in [*map(json.dumps, values), *NOT_NUMBERS]:
                yield with_field(name, value, route)
    for token in IDS:
        yield with_field("stop_token_ids", json.dumps([token]))
        yield with_field("allowed_token_ids", json.dumps([token]))
        yield with_field("logit_bias", json.dumps({str(token): 100}))
        yield with_field("logit_bias", json.dumps({str(token): -1e308}))
        for prompt in ([token], [[token], [3]], [3] * 100 + [token]):
            yield "/v1/completions", json.dumps({"prompt": prompt, "max_tokens": 2}).encode()
        yield "/detokenize", json.dumps({"tokens": [token]}).encode()
    yield with_field("logit_bias", json.dumps({str(i): 1 for i in range(100_000)}))
    yield with_field("logit_bias", json.dumps({"x" * 100_000: "y"}))
    yield with_field("stop", json.dumps(["x" * 1024] * 16))
    yield with_field("stop", json.dumps(["x"] * 17))
    yield with_field("stop", json.dumps([""]))
    yield with_field("stop_token_ids", json.dumps([3] * 129))
    yield with_field("n", "128", max_tokens=16)
    yield with_field("cache_salt", json.dumps("\x00" * 64))
    yield with_field("user", json.dumps("\r\n\x1b[2J" * 1000))
    yield with_field("response_format", '{"type": "json_schema"}')
    for depth in (62, 63, 64, 65, 100_000):
        yield with_field("metadata", "[" * depth + "]" * depth)
        yield "/v1/completions", b"[" * depth
    yield with_field("metadata", "{" + ",".join(f'"k{i}": 0' for i in range(5000)) + "}")
    yield "/v1/completions", json.dumps({"prompt": ["a"] * 5000}).encode()
    yield "/v1/completions", json.dumps({"prompt": "a" * 1_000_000}).encode()
    yield "/v1/completions", json.dumps({"prompt": [3] * 1_000_000}).encode()
    yield "/v1/completions", b'{"prompt": "\xff\xfe"}'
    yield "/v1/completions", b'{"prompt": "\\ud800"}'
    yield "/v1/completions", b'{"prompt": "a", "prompt": "b"}'
    yield "/v1/chat/completions", json.dumps(
        {"messages": [{"role": "user", "content": "a"}] * 5000}).encode()
    yield "/v1/chat/completions", json.dumps(
        {"messages": [{"role": {"a": []}, "content": [[[]]]}]}).encode()
    yield "/tokenize", json.dumps({"prompt": "\u0000\uffff<|endoftext|></s>" * 10_000}).encode()
    for body in (b"", b"\x00", b"null", b"1", b'"', b"{", b"[]", b"{}", b"\xef\xbb\xbf{}"):
        for route in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            yield route, body


@pytest.mark.parametrize("count", [900, long(10_000)])
def test_a_client_at_every_limit_changes_nobodys_bytes(start, count):
    bodies = list(hostile_bodies())
    statuses = {}

    def hostile(server, how_many):
        def one(number):
            # In another order each time, and every one at least once.
            route, body = bodies[number * 7919 % len(bodies)]
            status, answer = ask(server, route, body)
            assert status == 200 or 400 <= status < 500, (status, answer[:300], body[:300])
            statuses[status] = statuses.get(status, 0) + 1
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(how_many)))

    assert len(bodies) <= count
    hold_and_check(serve(start), hostile, count)
    assert statuses[200] > count / 10 and statuses[400] > count / 10, statuses
    print(statuses)
