#!/usr/bin/env python3
"""`millrace fit` beside the plan that workers print and what their GPUs then say is in use.

    gpu_fit.py [TPxPP ...]     every shape below, random weights, at each layout (default 1x1)

A line a rank: fit, plan, in use (MiB), and how far fit is from both; then fit's parts beside the
plan's. Exit code 1 where fit is off by more than 2 %. MILLRACE names the program.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MILLRACE = os.environ.get("MILLRACE", str(ROOT / "build" / "millrace"))
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
         "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "hidden_act": "silu",
         "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
         "tie_word_embeddings": True, "attention_bias": False, "eos_token_id": 151645}
PLAN = re.compile(r"memory plan: weights ([\d.]+) MiB, workspace ([\d.]+), communication ([\d.]+), "
                  r"graphs ([\d.]+), KV cache ([\d.]+) \(\d+ tokens\), together ([\d.]+); "
                  r"(?:in use|resident so far) ([\d.]+)")
PARTS = ("weights", "workspace", "communication", "graphs", "kv_cache", "together")


def gpu_memory():
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]


def compare(name, folder, layout, memory):
    tp, pp = layout.split("x")
    flags = ["--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len",
             "256" if name == "tiny" else "9216", "-tp", tp, "-pp", pp]
    fit = [MILLRACE, "fit", folder, *flags, "--gpus", str(int(tp) * int(pp)), "--gpu-memory",
           f"{memory}MiB", "--json"]
    told = json.loads(subprocess.run(fit, check=True, capture_output=True, text=True).stdout)
    run = [MILLRACE, "bench", "latency", folder, *flags, "--device", "cuda", "--batch-size", "1",
           "--input-len", "16", "--output-len", "8", "--num-iters", "1", "--json"]
    log = subprocess.run(run, check=True, capture_output=True, text=True, timeout=400).stderr
    wrong = 0
    for line in log.splitlines():
        found = PLAN.search(line)
        if not found:
            continue
        rank = int((re.search(r"\[rank (\d+)\]", line) or [0, 0])[1])
        *plan, used = map(float, found.groups())
        fits = [told["ranks"][rank][part] / 2**20 for part in PARTS]
        off = [100 * (fits[-1] / real - 1) for real in (plan[-1], used)]
        wrong += max(map(abs, off)) > 2
        print(f"fit {name} {layout} rank {rank}: fit {fits[-1]:.1f} MiB, plan {plan[-1]:.1f} "
              f"({off[0]:+.2f} %), in use {used:.1f} ({off[1]:+.2f} %)")
        for part, a, b in zip(PARTS, fits, plan):
            print(f"    {part:14}{a:12.1f}{b:12.1f}", flush=True)
    return wrong


def main(layouts):
    memory, wrong = gpu_memory(), 0
    with tempfile.TemporaryDirectory() as scratch:
        qwen3 = Path(scratch) / "qwen3"
        qwen3.mkdir()
        (qwen3 / "config.json").write_text(json.dumps(QWEN3))
        shapes = {"llama-3.1-8b": ROOT / "configs/shapes/llama-3.1-8b", "qwen3-0.6b": qwen3,
                  "tiny": ROOT / "tests/data/tiny-llama"}
        for layout in layouts:
            for name, folder in shapes.items():
                wrong += compare(name, str(folder), layout, memory)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["1x1"]))
