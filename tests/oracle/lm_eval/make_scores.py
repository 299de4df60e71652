#!/usr/bin/env python3
"""Writes scores.json: what transformers makes of facts.jsonl, for test_lm_eval.py. By hand; needs torch 2, transformers
5 and gguf.

    tests/oracle/lm_eval/make_scores.py [SmolLM2-135M-Instruct.Q4_1.gguf]

For each question and choice the sum of the choice's logprobs after the question, from one forward pass of the whole in
fp32, and whether each of its tokens is the likeliest. The texts and their cut into tokens are those of lm-eval's
multiple_choice: the choice with a space before it, its tokens what the whole has beyond those of the question.
"""
import json
import os
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GGUF = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
MODELS = {
    "tiny-llama": (str(ROOT / "tests/data/tiny-llama"), {}),
    "smollm2": (str(GGUF.parent), {"gguf_file": GGUF.name}),
}


def score(model, tokenizer, question, choice):
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    before = len(encode(question))
    ids = encode(question + choice)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    rows = range(before - 1, len(ids) - 1)
    likeliest = all(int(logprobs[row].argmax()) == ids[row + 1] for row in rows)
    return [round(sum(float(logprobs[row, ids[row + 1]]) for row in rows), 6), likeliest]


def main():
    questions = [json.loads(line) for line in (HERE / "facts.jsonl").read_text().splitlines()]
    scores = {}
    for name, (folder, options) in MODELS.items():
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
        samples = [[score(model, tokenizer, f"Question: {q['question']}\nAnswer:", " " + choice) for choice in q["choices"]]
                   for q in questions]
        right = by_length = 0
        for question, sample in zip(questions, samples):
            sums = [total for total, _ in sample]
            each = [total / len(choice) for total, choice in zip(sums, question["choices"])]
            right += sums.index(max(sums)) == question["answer"]
            by_length += each.index(max(each)) == question["answer"]
        scores[name] = {"acc": right / len(questions), "acc_norm": by_length / len(questions), "samples": samples}
        print(name, {key: scores[name][key] for key in ("acc", "acc_norm")})
    lines = [f'"{name}": {{"acc": {of["acc"]}, "acc_norm": {of["acc_norm"]}, "samples": [\n'
             + ",\n".join(json.dumps(sample) for sample in of["samples"]) + "]}" for name, of in scores.items()]
    (HERE / "scores.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
