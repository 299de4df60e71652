#!/usr/bin/env python3
"""Acceptance on real GPUs: scripts/gpu_check.sh calls the parts; each prints one line a check.

    gpu_check.py goldens [float32 | float16 | bfloat16] [TPxPP ...]
        tiny checkpoints: log probabilities of the prompts within a tolerance of transformers' in
        float32, and in float32 every greedy id
    gpu_check.py parity MODEL [TPxPP ...]
        greedy ids against the CPU's up to each prompt's first difference, which must be a near-tie;
        99 % of the positions agree
    gpu_check.py bench NAME [TPxPP [SHAPE]]
        one group of figures (see GROUPS) with random weights, as lines of $OUT/gpu_figures.jsonl;
        BENCH_FLAGS are added to the command
    gpu_check.py profile [TPxPP]
        how long the GPU stands idle between decode steps of the 8B shape, batch 1 and 256; the
        traces go to $OUT/trace-*.json
    gpu_check.py start [dummy | folder]
        the 8B shape served from nothing to the first token over HTTP, broken down: random weights
        made on the GPU, or read from a safetensors folder (made on the spot, in page cache)
    gpu_check.py figures kernels | comm [TPxPP [SHAPE]]
        `millrace bench kernels` or `comm`: the table, and its JSON in $OUT/bench-*.json
    gpu_check.py predict [TPxPP]
        what `simulate` says of a run from the step times of another one, at saturation and at 80 %
        of it: throughput within 5 %, median TTFT and TPOT within 10 %; and the run's gauges
    gpu_check.py interference
        a 16k prompt among 64 decoders of 1k at two settings of --max-itl-stretch, beside the aims;
        traces in $OUT
    gpu_check.py kill [TPxPP]
        kill -9 of rank 1 under three streams: clients, exit code and what is left
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "blackbox"), str(ROOT / "scripts")]
MILLRACE = Path(os.environ.get("MILLRACE", ROOT / "build" / "millrace"))
OUT = Path(os.environ.get("OUT", ROOT / "build"))
TINY = {"tiny-llama": "tiny-llama", "tiny-llama-tied": "tiny-llama-tied",
        "tiny-llama.gguf": "tiny-llama-gguf", "tiny-gemma3.gguf": "tiny-gemma3-gguf",
        **{name: name for name in ("tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-phi3",
                                   "tiny-gemma2", "tiny-gemma3", "tiny-smollm3", "tiny-olmo2")}}
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
    "decode-large": [latency(b, iters=1) for b in (1, 64)],
    "prefill": [latency(1, 8192, 2, 5), latency(8, 2048, 2, 5)],
    "offline": [throughput(1000, 1024, 128), throughput(1000, 128, 512)],
    "offline-1024": [throughput(1000, 1024, 128)],
    "offline-large": [throughput(320, 1024, 128)],
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


def golden_logprobs(name, count):
    """Of each prompt: log probabilities [positions, V] by transformers."""
    import numpy as np
    raw = (ROOT / "tests/data/goldens" / f"{name}.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    found = []
    for i in range(count):
        entry = header[f"logits.{i}"]
        begin, end = entry["data_offsets"]
        logits = np.frombuffer(raw[8 + size + begin:8 + size + end], np.float32).reshape(
            entry["shape"]).astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        found.append(logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))
    return found


# Largest difference of a log probability from transformers' in float32, by activation type.
TOLERANCES = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.5}


def goldens(dtype, layouts):
    wrong = 0
    for model, name in TINY.items():
        prompts = json.loads((ROOT / "tests/data/goldens" / f"{name}.json").read_text())["prompts"]
        truth = golden_logprobs(name, len(prompts))
        bodies = [{"prompt": p["ids"], "max_tokens": len(p["greedy"]), "prompt_logprobs": 5}
                  for p in prompts]
        for layout in layouts:
            answers = batch(ROOT / "tests/data" / model, bodies, ["--device", "cuda", "--dtype",
                            dtype, "--max-num-seqs", 8, *layout_flags(layout)])
            same = sum(a["token_ids"] == p["greedy"] for a, p in zip(answers, prompts))
            off = max(abs(told["logprob"] - wanted[at, int(token)])
                      for answer, wanted in zip(answers, truth)
                      for at, listed in enumerate(answer["prompt_logprobs"][1:])
                      for token, told in listed.items())
            # 16 bits may turn a near-tie over.
            wrong += off > TOLERANCES[dtype] or (dtype == "float32" and same != len(prompts))
            print(f"golden {model} {layout} {dtype}: {same} of {len(prompts)} prompts as "
                  f"transformers, log probabilities within {off:.1e}", flush=True)
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


def record(line):
    with open(OUT / "gpu_figures.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def dummy_bench(kind, shape, layout, *flags):
    """What `millrace bench KIND` printed, on random weights; None: it failed, which was told."""
    words = [MILLRACE, "bench", kind, SHAPES / shape, "--load-format", "dummy", "--device", "cuda",
             "--dtype", "bfloat16", "--json", "--log-level", "warning",
             *([] if "--max-model-len" in flags else ["--max-model-len", 9216]), *flags, *layout_flags(layout), *os.environ.get("BENCH_FLAGS", "").split()]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, timeout=450)
    if done.returncode != 0:
        print(f"bench {kind} {shape} {layout} {flags}: exit {done.returncode}", flush=True)
        return None
    return json.loads(done.stdout)


def bench(group, layout, shape):
    for command in GROUPS[group]:
        begin = time.time()
        figures = dummy_bench(command[0], shape, layout, *command[1:])
        if figures is None:
            return 1
        record({"shape": shape, "layout": layout, "command": " ".join(map(str, command)),
                "wall_s": round(time.time() - begin, 1), **figures})
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
        print(f"{shape} {layout} {' '.join(map(str, command[:7]))}: {shown}", flush=True)
    return 0


def profile(layout):
    wrong = 0
    for batch_size in (1, 256):
        trace = OUT / f"trace-{layout}-batch{batch_size}.json"
        figures = dummy_bench("latency", "llama-3.1-8b", layout, "--profile", trace,
                              *latency(batch_size)[1:])
        if figures is None:
            return 1
        spans = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
        share = figures["gpu_idle_fraction"]
        record({"shape": "llama-3.1-8b", "layout": layout, "command": f"profile {batch_size}",
                **figures})
        wrong += layout == "1x1" and share > 0.03
        print(f"profile {layout} batch {batch_size}: idle {100 * share:.2f} % between decode steps, "
              f"{figures['tpot_ms']:.3f} ms a token; {len(spans)} spans in {trace}", flush=True)
    return wrong


def show_figures(kind, layout, shape):
    report = dummy_bench(kind, shape, layout)
    if report is None:
        return 1
    (OUT / f"bench-{kind}-{shape}-{layout}.json").write_text(json.dumps(report))
    print(report["title"])
    for f in report["figures"]:
        print(f"  {f['name']:58}{f['us']:10.1f} us{f['gb_per_s']:9.1f} GB/s{f['tflops']:9.2f} "
              f"TFLOP/s  limit {f['limit_us']:9.1f} us{f['fraction_of_limit']:7.2f}")
    print("  limits:", {k: round(v, 1) for k, v in report.items() if isinstance(v, float)},
          flush=True)
    return 0


def predict(layout):
    wrong = 0
    load = ["--num-prompts", 600, "--input-len", 1024, "--output-len", 128,
            "--length-variation", 0.7]
    # Step times are learned from a run of another seed: at saturation, and at 70 % for the 80.
    with tempfile.TemporaryDirectory() as folder:
        saved, saturation = Path(folder) / "model.json", 0
        for name, seen, asked in (("saturated", 0, 0), ("80 %", 0.7, 0.8)):
            first = dummy_bench("throughput", "llama-3.1-8b", layout, *load, "--seed", 1, "--rate",
                                seen * saturation, "--save-model", saved)
            saturation = saturation or first["requests_per_s"]
            rate = asked * saturation
            common = [*load, "--seed", 2, "--rate", rate]
            real = dummy_bench("throughput", "llama-3.1-8b", layout, *common)
            words = [MILLRACE, "simulate", "--step-model", saved, *load, "--seed", 2, "--rate",
                     rate or 1e6, "--replicas", 1, "--json"]
            told = json.loads(subprocess.run([str(word) for word in words], check=True,
                                             stdout=subprocess.PIPE, timeout=100).stdout)
            pairs = {"tokens_per_s": (told["tokens_per_s"], real["total_tokens_per_s"], 0.05),
                     "ttft_ms": (told["ttft_ms"]["p50"], real["ttft_ms"], 0.10),
                     "tpot_ms": (told["tpot_ms"]["p50"], real["tpot_ms"], 0.10)}
            record({"command": f"predict {layout} {name}", "simulated": told, **real})
            for key, (a, b, tolerance) in pairs.items():
                wrong += abs(a / b - 1) > tolerance
                print(f"predict {layout} {name} {key}: simulated {a:.2f}, real {b:.2f}: "
                      f"{100 * (a / b - 1):+.1f} %", flush=True)
            print(f"gauges {layout} {name}: bubble {real['stage_bubble_fraction']:.3f}, exposed "
                  f"communication {real['exposed_comm_fraction']:.4f}, lane spread "
                  f"{real['lane_spread']:.3f}, p99 between tokens {real['itl_p99_ms']:.2f} ms, "
                  f"{real['requests_per_s']:.2f} requests/s", flush=True)
    return wrong


def interference():
    wrong = 0
    for stretch, itl_aim, ttft_aim in ((1.3, 1.3, 3.0), (2.0, 2.0, 2.0)):
        told = dummy_bench("interference", "llama-3.1-8b", "1x1", "--max-itl-stretch", stretch,
                           "--max-model-len", 20480, "--profile",
                           OUT / f"trace-interference-{stretch}.json", "--save-model",
                           OUT / f"model-interference-{stretch}.json")
        if told is None:
            return 1
        record({"command": f"interference {stretch}", **told})
        wrong += told["itl_ratio"] > itl_aim or told["ttft_ratio"] > ttft_aim
        print(f"interference at {stretch}: p99 between tokens {told['itl_p99_ms']:.2f} ms = "
              f"{told['itl_ratio']:.2f} x (aim {itl_aim}), TTFT {told['ttft_ms']:.0f} ms = "
              f"{told['ttft_ratio']:.2f} x alone (aim {ttft_aim})", flush=True)
    return wrong


def checkpoint_folder():
    """Where 16 GB fit: in memory if there is room."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        space = os.statvfs(folder)
        if space.f_bavail * space.f_frsize > 20e9:
            return Path(folder) / "millrace-8b"
    raise SystemExit("no folder with 20 GB of room for the checkpoint")


def served_shape(scratch):
    """A folder of the 8B shape with a tokenizer, so that it can be served."""
    folder = scratch / "model"
    folder.mkdir()
    for file in (SHAPES / "llama-3.1-8b/config.json", *(ROOT / "tests/data/tiny-llama").glob("*oken*")):
        (folder / file.name).write_bytes(file.read_bytes())
    # Every id has a text, so that every token is streamed when it comes.
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab.update({f"Ġw{i}": i for i in range(len(vocab), 128256)})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def start(source):
    flags = ["--load-format", "dummy", "--dtype", "bfloat16"]
    with tempfile.TemporaryDirectory() as scratch:
        if source == "folder":
            from make_checkpoint import make
            model, flags = checkpoint_folder(), ["--dtype", "bfloat16"]
            if not (model / "model.safetensors").exists():
                begin = time.time()
                size = make(SHAPES / "llama-3.1-8b", model)
                print(f"made {size / 1e9:.2f} GB in {model} in {time.time() - begin:.1f} s")
            subprocess.run(["cat", model / "model.safetensors"], stdout=subprocess.DEVNULL,
                           check=True)  # into the page cache
        else:
            model = served_shape(Path(scratch))
        for attempt in ("first", "second"):  # the first also reads the program and its libraries
            first_token(model, flags, Path(scratch), f"start {source}, {attempt}")
    return 0


def first_token(model, flags, scratch, title):
    from jobs import free_port
    port, log = free_port(), scratch / "serve.log"
    words = [MILLRACE, "serve", model, "--device", "cuda", "--max-model-len", 9216, "--port", port,
             "--served-model-name", "m", *flags]
    begin = time.time()
    with open(log, "wb") as out:
        server = subprocess.Popen([str(word) for word in words], stdout=out, stderr=out)
    base = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if server.poll() is not None or time.time() - begin > 200:
                raise SystemExit(f"{title}: not ready\n{log.read_text()[-3000:]}")
            time.sleep(0.002)
        body = {"model": "m", "prompt": [5] * 467, "max_tokens": 4, "stream": True,
                "ignore_eos": True, "temperature": 0}
        request = urllib.request.Request(f"{base}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
        end = time.time()
    finally:
        server.terminate()
        server.wait(30)
    marks, loading = {}, 0.0
    for line in log.read_text().splitlines():
        for key, words in (("listening", "listening on"), ("welcome", "loading "),
                           ("weights", "weights: "), ("ready", "ready after")):
            if words in line and key not in marks:
                at = datetime.strptime(line.split()[0], "%H:%M:%S.%f")
                now = datetime.fromtimestamp(begin)
                marks[key] = (at.replace(year=now.year, month=now.month, day=now.day) - now
                              ).total_seconds()
                if key == "weights":
                    loading = float(line.rsplit(" in ", 1)[1].split()[0])
        if "memory plan" in line or "weights: " in line:
            print(" ", line)
    parts = {"process": marks["listening"], "device": marks["weights"] - loading - marks["welcome"],
             "weights": loading, "cache_and_graphs": marks["ready"] - marks["weights"],
             "first_token": end - begin - marks["ready"],
             "all": end - begin}
    record({"command": title, **parts})
    print(f"{title}: " + ", ".join(f"{k} {v:.2f} s" for k, v in parts.items()), flush=True)


def kill(layout):
    from jobs import MODEL_NAME, Server
    tp, pp = map(int, layout.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--device", "cuda", "--max-model-len", 4096, "--load-format",
                        "dummy", mode=2, tp=tp, pp=pp, model=served_shape(Path(folder)))
        ends = []

        def stream():
            body = {"model": MODEL_NAME, "prompt": [5] * 16, "max_tokens": 1900,
                    "ignore_eos": True, "stream": True, "temperature": 0}
            request = urllib.request.Request(f"{server.base}/v1/completions",
                                             json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    last = [line for line in answer if line.startswith(b"data: ")][-1]
            except urllib.error.HTTPError as refusal:  # nothing had been sent yet
                last = refusal.read()
            ends.append((time.monotonic(), last.decode().strip()))

        threads = [threading.Thread(target=stream) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        at = time.monotonic()
        os.kill(server.worker(1).pid, 9)
        for thread in threads:
            thread.join(60)
        code = server.wait(60)
        server.assert_nothing_left()
        late = max((t - at for t, _ in ends), default=99)
        named = sum("error" in last and "rank 1" in last for _, last in ends)
        print(f"kill {layout}: exit code {code}, {named} of 3 clients were told of rank 1, the last "
              f"after {late:.2f} s, nothing is left running; {ends[0][1] if ends else ''}", flush=True)
        return int(code != 6 or named != 3 or late > 1)


def main(args):
    part = args[0] if args else ""
    if part == "goldens":
        dtype = args[1] if args[1:] and args[1] in TOLERANCES else "float32"
        return goldens(dtype, [word for word in args[1:] if word != dtype] or ["1x1"])
    if part == "parity":
        return parity(args[1], args[2:] or ["1x1"])
    if part == "bench":
        return bench(args[1], args[2] if len(args) > 2 else "1x1",
                     args[3] if len(args) > 3 else "llama-3.1-8b")
    if part == "profile":
        return profile(args[1] if len(args) > 1 else "1x1")
    if part == "start":
        return start(args[1] if len(args) > 1 else "dummy")
    if part == "figures":
        return show_figures(args[1], args[2] if len(args) > 2 else "1x1",
                            args[3] if len(args) > 3 else "llama-3.1-8b")
    if part == "predict":
        return predict(args[1] if len(args) > 1 else "1x1")
    if part == "interference":
        return interference()
    if part == "kill":
        return kill(args[1] if len(args) > 1 else "2x1")
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
