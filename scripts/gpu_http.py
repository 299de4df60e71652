#!/usr/bin/env python3
"""The 8B shape behind HTTP, loaded by `millrace bench serve`: prompts of 1,024 ids, 128 tokens each, as
Poisson arrivals at 4 and at 16 a second, and 500 at once. A line a load; JSON in $OUT/http.jsonl."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import gpu_check
from jobs import Server

LOADS = (("4", 160), ("16", 480), ("inf", 500))


def main():
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--device", "cuda", "--dtype", "bfloat16", "--max-model-len",
                        9216, "--load-format", "dummy", "--log-level", "warning",
                        *os.environ.get("BENCH_FLAGS", "").split(),
                        model=gpu_check.served_shape(Path(folder)))
        for seed, (rate, count) in enumerate((("16", 64), *LOADS)):  # the first is a warm-up
            words = [gpu_check.MILLRACE, "bench", "serve", "--port", server.port, "--request-rate",
                     rate, "--num-prompts", count, "--ignore-eos", "--seed", seed, "--json"]
            done = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE)
            told = json.loads(done.stdout)
            if seed == 0:
                continue
            with open(gpu_check.OUT / "http.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps({"rate": rate, **told}) + "\n")
            print(f"HTTP at {rate}/s, {told['completed']} completed, {told['failed']} failed: TTFT "
                  f"p50 {told['median_ttft_ms']:.1f}, p99 {told['p99_ttft_ms']:.1f} ms; TPOT p50 "
                  f"{told['median_tpot_ms']:.2f}, p99 {told['p99_tpot_ms']:.2f}; ITL p99 "
                  f"{told['p99_itl_ms']:.2f}; {told['output_throughput']:.0f} output tokens/s",
                  flush=True)
        server.stop()


if __name__ == "__main__":
    main()
