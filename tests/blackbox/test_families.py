"""Greedy ids of each family's tiny checkpoint as transformers gave them, through the whole program:
prompts in chunks smaller than the sliding windows, decoding beside them, whole and cut."""

import json

import pytest

from jobs import ROOT, command

GOLDENS = ROOT / "tests" / "data" / "goldens"
FOLDERS = ["mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "smollm3", "olmo2"]
MODELS = [(f"tiny-{name}", f"tiny-{name}") for name in FOLDERS] + [
    (f"tiny-{name}.gguf", f"tiny-{name}-gguf" if name in ("qwen2", "gemma3") else f"tiny-{name}")
    for name in FOLDERS if name != "mistral"]


def check(start, tmp_path, model, golden, *flags, **layout):
    prompts = json.loads((GOLDENS / f"{golden}.json").read_text())["prompts"]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({
        "custom_id": str(i), "method": "POST", "url": "/v1/completions",
        "body": {"model": "m", "prompt": p["ids"], "max_tokens": len(p["greedy"]),
                 "temperature": 0, "ignore_eos": True, "return_token_ids": True}}) + "\n"
        for i, p in enumerate(prompts)))
    words = command("run-batch", "--served-model-name", "m", "-i", source, "-o", target, *flags,
                    model=ROOT / "tests" / "data" / model, **layout)
    code, _, err = start.run(words)
    assert code == 0, err
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    answers = {int(a["custom_id"]): a["response"]["body"]["choices"][0] for a in lines}
    assert [answers[i]["token_ids"] for i in range(len(prompts))] == [p["greedy"] for p in prompts]


@pytest.mark.parametrize("model,golden", MODELS)
def test_in_chunks(start, tmp_path, model, golden):
    check(start, tmp_path, model, golden, "--max-num-batched-tokens", 7, "--max-num-seqs", 2)


@pytest.mark.parametrize("family", ["phi3", "gemma3", "smollm3", "olmo2"])
def test_cut_over_ranks(start, tmp_path, family):
    check(start, tmp_path, f"tiny-{family}", f"tiny-{family}", mode=2, tp=2, pp=2)
