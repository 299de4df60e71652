"""lm-eval's local-completions against a running server: the scores that transformers gave (lm_eval/make_scores.py), in all
and choice by choice. lm-eval comes from PyPI into build/lm-eval, unless MILLRACE_LM_EVAL names the program."""

import json
import os
import pathlib
import subprocess
import sys
import venv

import pytest
from tokenizers import Tokenizer

from vocabularies import from_gguf

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "blackbox"))
from jobs import MODEL, MODEL_NAME, Server  # noqa: E402

TASK = ROOT / "tests" / "oracle" / "lm_eval"
SCORES = json.loads((TASK / "scores.json").read_text())
# Of a choice's logprob. Quantized weights are multiplied with activations of 16 bits.
TOLERANCE = {"tiny-llama": 1e-4, "smollm2": 1e-2}


@pytest.fixture(scope="module")
def lm_eval():
    if "MILLRACE_LM_EVAL" in os.environ:
        return os.environ["MILLRACE_LM_EVAL"]
    folder = ROOT / "build" / "lm-eval"
    if not (folder / "bin" / "lm_eval").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", "-r", TASK / "requirements.txt"], check=True)
    return folder / "bin" / "lm_eval"


def write_tokenizer(name, folder):
    """As transformers reads it: lm-eval sends ids."""
    tiny = ROOT / "tests" / "data" / "tiny-llama" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tiny)) if name == "tiny-llama" else from_gguf(MODEL)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def evaluate(program, server, name, folder):
    """(the task's results, its samples in order)"""
    write_tokenizer(name, folder / "tokenizer")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "facts.yaml").write_text((TASK / "facts.yaml").read_text().replace("FACTS_JSONL", str(TASK / "facts.jsonl")))
    model = {"model": MODEL_NAME, "base_url": f"{server.base}/v1/completions", "tokenizer": folder / "tokenizer",
             "tokenizer_backend": "huggingface", "num_concurrent": 2, "max_retries": 1}
    words = [program, "--model", "local-completions", "--model_args", ",".join(f"{k}={v}" for k, v in model.items()),
             "--include_path", tasks, "--tasks", "millrace_facts", "--batch_size", "16", "--output_path", folder / "out",
             "--log_samples"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, cwd=folder,
                          env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["millrace_facts"], sorted(lines, key=lambda line: line["doc_id"])


@pytest.mark.long
@pytest.mark.parametrize("name, layout", [("tiny-llama", {}), ("tiny-llama", {"mode": 2, "tp": 2, "pp": 2}), ("smollm2", {})],
                         ids=["tiny", "tiny-tp2-pp2", "smollm2"])
def test_scores_are_those_of_transformers(lm_eval, tmp_path, name, layout):
    expected = SCORES[name]
    model = MODEL if name == "smollm2" else ROOT / "tests" / "data" / name
    server = Server(tmp_path, model=model, **layout)
    try:
        results, samples = evaluate(lm_eval, server, name, tmp_path)
        assert server.stop() == 0
    finally:
        server.kill()
    assert len(samples) == len(expected["samples"]) == 100
    differences = []
    for sample, choices in zip(samples, expected["samples"]):
        answers = [(float(total), likeliest == "True") for ((total, likeliest),) in sample["resps"]]
        assert len(answers) == len(choices) >= 3
        differences += [abs(total - wanted) for (total, _), (wanted, _) in zip(answers, choices)]
        assert [likeliest for _, likeliest in answers] == [likeliest for _, likeliest in choices], sample["doc"]
    print(f"{name}: acc {results['acc,none']}, acc_norm {results['acc_norm,none']}, largest difference {max(differences):.2g}")
    assert max(differences) < TOLERANCE[name]
    assert results["acc,none"] == pytest.approx(expected["acc"])
    assert results["acc_norm,none"] == pytest.approx(expected["acc_norm"])
