#!/usr/bin/env python3
"""Perplexity of a text by Millrace and by llama.cpp, from the same GGUF files.

The text is cut into windows of 512 tokens by llama.cpp's tokenizer; both engines get the same ids and
give every token after a window's first its natural logarithm, llama.cpp in one batch a window, with
fp32 scores. Needs llama-cpp-python and numpy.

    tests/oracle/compare_perplexity.py [--perplexity build/tests/perplexity] [--text FILE] MODEL.gguf ...

Exit code 0 when every perplexity is within 0.5 % of llama.cpp's.
"""
import argparse
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WINDOW = 512
LIMIT = 0.005


def of_llama_cpp(model, text):
    """The windows of ids, and the logarithms of each."""
    import llama_cpp
    import numpy

    llama = llama_cpp.Llama(model, n_ctx=WINDOW, n_batch=WINDOW, n_ubatch=WINDOW, logits_all=True, verbose=False)
    ids = llama.tokenize(text, add_bos=False)
    windows = [ids[i:i + WINDOW] for i in range(0, len(ids), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    logs = []
    for window in windows:
        llama.reset()
        llama.eval(window)
        scores = numpy.array(llama.scores[:len(window)], dtype=numpy.float64)
        top = scores.max(axis=1)
        norm = top + numpy.log(numpy.exp(scores - top[:, None]).sum(axis=1))
        logs.append([scores[i - 1, window[i]] - norm[i - 1] for i in range(1, len(window))])
    return windows, logs


def of_millrace(program, model, windows):
    lines = "".join(" ".join(map(str, window)) + "\n" for window in windows)
    run = subprocess.run([program, model], input=lines, capture_output=True, text=True, check=True)
    return [[float(word) for word in line.split()] for line in run.stdout.splitlines()]


def perplexity(logs):
    every = [log for window in logs for log in window]
    return math.exp(-sum(every) / len(every))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--perplexity", default=str(ROOT / "build/tests/perplexity"))
    parser.add_argument("--text", default=str(ROOT / "tests/data/perplexity.txt"))
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    text = pathlib.Path(args.text).read_bytes()
    failed = False
    print(f"{'file':44} {'tokens':>6} {'millrace':>9} {'llama.cpp':>9} {'apart':>8}  largest of one token")
    for model in args.models:
        windows, theirs = of_llama_cpp(model, text)
        ours = of_millrace(args.perplexity, model, windows)
        assert [len(a) for a in ours] == [len(b) for b in theirs]
        a, b = perplexity(ours), perplexity(theirs)
        most = max(abs(x - y) for one, two in zip(ours, theirs) for x, y in zip(one, two))
        print(f"{pathlib.Path(model).name:44} {sum(map(len, ours)):6} {a:9.4f} {b:9.4f} {a / b - 1:+8.3%}  {most:.4f}",
              flush=True)
        failed |= not abs(a / b - 1) <= LIMIT
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
