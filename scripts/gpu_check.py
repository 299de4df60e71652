#!/usr/bin/env python3
"""Acceptance on real GPUs: scripts/gpu_check.sh calls the parts; each prints one line a check.

    gpu_check.py goldens [TPxPP ...]
        tiny checkpoints in float32: every greedy id as transformers gives it
    gpu_check.py parity MODEL [TPxPP ...]
        greedy ids against the CPU's up to each prompt's first difference, which must be a near-tie;
        99 % of the positions agree
    gpu_check.py bench NAME [TPxPP [SHAPE]]
        one group of figures (see GROUPS) with random weights, as lines of $OUT/gpu_figures.jsonl;
        BENCH_FLAGS are added to the command
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MILLRACE = Path(os.environ.get("MILLRACE", ROOT / "build" / "millrace"))
OUT = Path(os.environ.get("OUT", ROOT / "build"))
TINY = {"tiny-llama": "tiny-llama", "tiny-llama-tied": "tiny-llama-tied",
        "tiny-llama.gguf": "tiny-llama-gguf"}
PROMPTS = [
    "The history of the water wheel begins", "def fibonacci(n):\n", "Dear Sir or Madam,\n\n",
    "Die Hauptstadt von Deutschland ist", "To bake a loaf of bread you need", "Water boils at",
    "In 1969 the first humans", "Q: What is 17 + 25?\nA:", "The mitochondria is",
    "The three laws of thermodynamics are", "SELECT name, age FROM people WHERE",
    "Once upon a time, in a village by the river,", "1, 1, 2, 3, 5, 8,", "Les feuilles mortes se",
    "Photosynthesis is the process by which", "The best way to learn a language is",
    "A distributed system is one in which", "Ingredients:\n- 2 eggs\n-",
    "The sun rose over the mountains and", "{\"name\": \"Alice\", \"age\":",
]
# The largest lead, in log probability on the CPU, that rounding of f16 activations may turn over.
NEAR_TIE = 0.05
SHAPES = ROOT / "configs" / "shapes"

# Name: (shape, command, flags) of each figure.
def latency(batch, input_len=512, output_len=144, iters=2):
    return ["latency", "--batch-size", batch, "--input-len", input_len, "--output-len", output_len,
            "--num-iters", iters, "--num-iters-warmup", 1, "--max-num-seqs", max(batch, 8)]

def throughput(prompts, input_len, output_len):
    return ["throughput", "--num-prompts", prompts, "--input-len", input_len, "--output-len",
            output_len]

GROUPS = {
    "decode": [latency(b) for b in (1, 8, 32, 64, 128, 256)],
    "decode-short": [latency(b, iters=1) for b in (1, 64, 256)],
    "prefill": [latency(1, 8192, 2, 5), latency(8, 2048, 2, 5)],
    "offline": [throughput(1000, 1024, 128), throughput(1000, 128, 512)],
    "offline-1024": [throughput(1000, 1024, 128)],
}


def layout_flags(layout):
    tp, pp = layout.split("x")
    return ["-tp", tp, "-pp", pp]


def batch(model, bodies, flags):
    """Answers to completions bodies, by run-batch, in order."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with open(source, "w", encoding="utf-8") as lines:
            for i, body in enumerate(bodies):
                lines.write(json.dumps({"custom_id": str(i), "method": "POST",
                    "url": "/v1/completions", "body": {"model": "m", "temperature": 0,
                        "ignore_eos": True, "return_token_ids": True, **body}}) + "\n")
        command = [MILLRACE, "run-batch", model, "--served-model-name", "m", "-i", source, "-o",
                   target, "--log-level", "warning", *flags]
        subprocess.run([str(word) for word in command], check=True, timeout=400)
        answers = {}
        for line in open(target, encoding="utf-8"):
            answer = json.loads(line)
            answers[int(answer["custom_id"])] = answer["response"]["body"]["choices"][0]
        return [answers[i] for i in range(len(bodies))]


def goldens(layouts):
    wrong = 0
    for model, name in TINY.items():
        prompts = json.loads((ROOT / "tests/data/goldens" / f"{name}.json").read_text())["prompts"]
        bodies = [{"prompt": p["ids"], "max_tokens": len(p["greedy"])} for p in prompts]
        for layout in layouts:
            answers = batch(ROOT / "tests/data" / model, bodies, ["--device", "cuda", "--dtype",
                            "float32", "--max-num-seqs", 8, *layout_flags(layout)])
            same = sum(a["token_ids"] == p["greedy"] for a, p in zip(answers, prompts))
            wrong += same != len(prompts)
            print(f"golden {model} {layout} float32: {same} of {len(prompts)} prompts as "
                  f"transformers", flush=True)
    return wrong


def parity(model, layouts, num_tokens=64):
    """Positions up to each prompt's first difference, which must be a near-tie."""
    cpu = batch(model, [{"prompt": p, "max_tokens": num_tokens, "logprobs": 2} for p in PROMPTS],
                ["--device", "cpu"])
    wrong = 0
    for layout in layouts:
        answers = batch(model, [{"prompt": p, "max_tokens": num_tokens, "logprobs": 2}
                                for p in PROMPTS],
                        ["--device", "cuda", "--max-model-len", 2048, *layout_flags(layout)])
        positions = agreeing = ties = 0
        for reference, other in zip(cpu, answers):
            for at, (a, b) in enumerate(zip(reference["token_ids"], other["token_ids"])):
                positions += 1
                if a == b:
                    agreeing += 1
                    continue
                top = reference["logprobs"]["top_logprobs"][at]
                lead = max(top.values()) - min(top.values())
                ties += lead <= NEAR_TIE
                print(f"  differs after {at} tokens: the CPU leads by {lead:.4f}: {top}")
                wrong += lead > NEAR_TIE
                break  # from here on the two texts go their own ways
        print(f"parity {layout}: {agreeing} of {positions} positions agree "
              f"({100 * agreeing / positions:.2f} %), {ties} near-ties", flush=True)
        wrong += agreeing < 0.99 * positions
    return wrong


def bench(group, layout, shape):
    model = SHAPES / shape
    for command in GROUPS[group]:
        words = [MILLRACE, "bench", command[0], model, "--load-format", "dummy", "--device", "cuda",
                 "--dtype", "bfloat16", "--max-model-len", 9216, "--json", "--log-level", "warning",
                 *command[1:], *layout_flags(layout), *os.environ.get("BENCH_FLAGS", "").split()]
        begin = time.time()
        done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, timeout=500)
        if done.returncode != 0:
            print(f"bench {shape} {layout} {command}: exit {done.returncode}", flush=True)
            return 1
        figures = json.loads(done.stdout)
        line = {"shape": shape, "layout": layout, "command": " ".join(map(str, command)),
                "wall_s": round(time.time() - begin, 1), **figures}
        with open(OUT / "gpu_figures.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
        print(f"{shape} {layout} {' '.join(map(str, command[:7]))}: {shown}", flush=True)
    return 0


def main(args):
    part = args[0] if args else ""
    if part == "goldens":
        return goldens(args[1:] or ["1x1"])
    if part == "parity":
        return parity(args[1], args[2:] or ["1x1"])
    if part == "bench":
        return bench(args[1], args[2] if len(args) > 2 else "1x1",
                     args[3] if len(args) > 3 else "llama-3.1-8b")
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
