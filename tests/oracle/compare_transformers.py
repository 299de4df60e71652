#!/usr/bin/env python3
"""Next-token choices of Millrace against transformers loading the same GGUF file.

Teacher forcing: for each text every prefix of 1..N tokens is one run-batch line with a token-id
prompt and one greedy token. Needs torch, transformers and gguf; scripts/check_all.sh installs them.

    tests/oracle/compare_transformers.py [--positions 500] [--millrace build/millrace] [ARGS ...]

ARGS go to run-batch (for example -tp 2 -pp 2). Exit code 0 when at least 99 % agree; every
difference is printed with the two logits' distance, so that a near-tie can be told from a bug.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = [
    "The mill stood at the bend of the river, and its wheel had not turned since the great flood of",
    "To make a simple vegetable soup, first wash and chop two carrots, one onion and three potatoes,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\nprint",
    "In 1969 the first message was sent over the network that later became the internet; it was meant to be",
    "<|im_start|>user\nWhat is the capital of France, and what river runs through it?<|im_end|>\n<|im_start|>assistant\nThe",
    "Photosynthesis is the process by which green plants use sunlight, water and carbon dioxide to",
    "Dear Ms. Howard,\n\nThank you for your letter of 12 March 2021. I am writing to tell you that your",
    "| year | rainfall (mm) | harvest (t) |\n|------|------|------|\n| 2001 | 512 | 34 |\n| 2002 | 498 | 31 |\n|",
    "Die Stadt liegt am Ufer des Flusses, der im Sommer oft kaum Wasser führt. Im Winter aber",
    "Q: A train leaves at 9:40 and arrives at 13:05. How long is the journey?\nA: From 9:40 to 13:05 is",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--positions", type=int, default=500)
    parser.add_argument("--millrace", default=str(ROOT / "build/millrace"))
    parser.add_argument("--model", default=os.environ.get(
        "MILLRACE_TEST_MODEL", str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")))
    args, rest = parser.parse_known_args()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = os.path.split(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    per_text = -(-args.positions // len(TEXTS))
    cases = []  # (prefix ids, logits)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # A short text is continued by the model itself, so that it has enough positions.
        with torch.no_grad():
            ids = model.generate(torch.tensor([ids[:per_text]]), max_length=max(per_text, len(ids[:per_text]) + 1),
                                 do_sample=False, eos_token_id=None)[0].tolist()[:per_text]
            logits = model(torch.tensor([ids])).logits[0]
        cases += [(ids[: i + 1], logits[i]) for i in range(len(ids))]
    cases = cases[: args.positions]

    with tempfile.TemporaryDirectory() as work:
        source, target = os.path.join(work, "in.jsonl"), os.path.join(work, "out.jsonl")
        with open(source, "w") as out:
            for i, (ids, _) in enumerate(cases):
                out.write(json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions",
                                      "body": {"prompt": ids, "max_tokens": 1, "temperature": 0,
                                               "ignore_eos": True, "logprobs": 1,
                                               "skip_special_tokens": False}}) + "\n")
        subprocess.run([args.millrace, "run-batch", args.model, "-i", source, "-o", target, *rest], check=True)
        answers = {}
        for line in open(target):
            row = json.loads(line)
            answers[int(row["custom_id"])] = row["response"]["body"]["choices"][0]["logprobs"]["tokens"][0]

    agreed = 0
    for i, (ids, logits) in enumerate(cases):
        best = int(logits.argmax())
        if answers[i] == tokenizer.decode([best], skip_special_tokens=False):
            agreed += 1
            continue
        ours = tokenizer.encode(answers[i], add_special_tokens=False)
        gap = float(logits[best] - logits[ours[0]]) if len(ours) == 1 else float("nan")
        print(f"position {len(ids)} of case {i}: ours {answers[i]!r}, transformers "
              f"{tokenizer.decode([best])!r}; logits differ by {gap:.2e}")
    share = agreed / len(cases)
    print(f"{agreed} of {len(cases)} next tokens agree ({share:.1%})")
    return 0 if share >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
