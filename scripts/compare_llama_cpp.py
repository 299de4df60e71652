#!/usr/bin/env python3
"""Millrace beside llama.cpp on the CPU: the same file, threads and requests, in turn.

    scripts/compare_llama_cpp.py MODEL.gguf --llama-server PATH [--rounds 5] [--threads 2]

Both serve the file over HTTP and get the same token ids. A round is one request alone (512 prompt
tokens, 64 after them: its first token's time and the time between tokens), then 8 requests at once
(4 rounds of them, 256 + 64 tokens each: tokens a second, the prompts' counted too). Printed: median
(least - most) over the rounds. The machine should be otherwise idle. llama-server is built from
llama.cpp's source (the sdist of llama-cpp-python has it): cmake -DGGML_NATIVE=ON, target llama-server.
"""

import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MILLRACE = Path(os.environ.get("MILLRACE", ROOT / "build" / "millrace"))
AT_ONCE, WAVES = 8, 4


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, words, port):
        self.port = port
        self.process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        while True:
            if self.process.poll() is not None:
                sys.exit(f"{words[0]} ended with {self.process.returncode}")
            try:
                if self.request("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer

    def complete(self, ids, num_tokens):
        """When the events with text came, in seconds from the sending."""
        body = {"model": "m", "prompt": ids, "max_tokens": num_tokens, "temperature": 0,
                "ignore_eos": True, "stream": True, "cache_prompt": False}
        begin = time.monotonic()
        status, answer = self.request("POST", "/v1/completions", json.dumps(body))
        if status != 200:
            sys.exit(f"port {self.port} answers {status}: {answer.read()[:500]}")
        return [time.monotonic() - begin for line in answer if line.startswith(b"data: {")]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def one_round(server, draw):
    """(prompt tokens/s and decoded tokens/s of one request alone, tokens/s of 8 at once)."""
    at = server.complete(draw(512), 64)
    prompt, decode = 512 / at[0], (len(at) - 1) / (at[-1] - at[0])
    prompts = [[draw(256) for _ in range(WAVES)] for _ in range(AT_ONCE)]
    def client(mine):
        for ids in mine:
            server.complete(ids, 64)
    threads = [threading.Thread(target=client, args=(mine,)) for mine in prompts]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = AT_ONCE * WAVES * (256 + 64) / (time.monotonic() - begin)
    return prompt, decode, together


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    ours, theirs = free_port(), free_port()
    servers = {
        "Millrace": Server([MILLRACE, "serve", options.model, "--device", "cpu", "--threads",
                            options.threads, "--port", ours, "--served-model-name", "m",
                            "--max-num-seqs", AT_ONCE, "--max-model-len", 1024, "--log-level",
                            "warning"], ours),
        "llama.cpp": Server([options.llama_server, "-m", options.model, "-t", options.threads, "-tb",
                             options.threads, "-np", AT_ONCE, "-c", AT_ONCE * 1024, "--port",
                             theirs, "--no-ui"], theirs),
    }
    source = random.Random(1)
    draw = lambda count: [source.randrange(100, 40_000) for _ in range(count)]  # no common prefixes
    try:
        for server in servers.values():
            one_round(server, draw)  # warm-up
        figures = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, server in servers.items():
                figures[name].append(one_round(server, draw))
    finally:
        for server in servers.values():
            server.stop()
    print(f"{options.model.name}, {options.threads} threads, {options.rounds} rounds, tokens/s: "
          "median (least - most)")
    for i, title in enumerate(("one request, 512 prompt tokens", "one request, decode",
                               "8 requests at once, all tokens")):
        rows = {name: sorted(row[i] for row in rows) for name, rows in figures.items()}
        middle = {name: statistics.median(row) for name, row in rows.items()}
        print(f"{title}: " + ", ".join(
            f"{name} {middle[name]:.1f} ({row[0]:.1f} - {row[-1]:.1f})" for name, row in
            rows.items()) + f": {middle['Millrace'] / middle['llama.cpp']:.2f} x", flush=True)


if __name__ == "__main__":
    main()
