"""What the scheduler chooses changes no id: 50 mixed requests alone, together, in chunks, and with
a cache so small that sequences are preempted, in one process and at TP 2 x PP 2.

Within a layout a row's bits do not depend on its company (docs/architecture.md), so ids must be
equal, ties included.
"""

import json
import random
import subprocess

import pytest

from jobs import MODEL_NAME, command

TEXT = ("The history of the water wheel begins long before the age of steam. Millers built channels "
        "that led a stream to a race, and the race turned a wheel whose shaft drove the stones. ")
# Flags of each way; the reference has one sequence at a time and nothing to share.
WAYS = {
    "together": ["--max-num-seqs", "16"],
    "chunks": ["--max-num-seqs", "16", "--max-num-batched-tokens", "48"],
}
# A cache of about 600 tokens on each rank, for sequences of up to 423.
LITTLE = {(1, 1): "28MB", (2, 2): "12MB"}


def requests():
    """Prompts of 5 to 400 tokens, every third with a long common beginning; greedy and drawn."""
    draw = random.Random(5)
    made = []
    for i in range(50):
        beginning = TEXT * 5 if i % 3 == 0 else ""
        prompt = beginning + " ".join(draw.choices(TEXT.split(), k=draw.randint(4, 180)))
        body = {"prompt": prompt, "max_tokens": draw.randint(8, 48), "ignore_eos": True,
                "temperature": 0 if i % 2 == 0 else 0.9, "seed": i}
        if i % 4 == 1:
            body |= {"top_p": 0.9, "frequency_penalty": 0.3}
        made.append(body)
    return made


def answer(folder, name, bodies, flags, tp, pp):
    source, target = folder / f"{name}.jsonl", folder / f"{name}.out.jsonl"
    source.write_text("".join(
        json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions",
                    "body": {"model": MODEL_NAME, "return_token_ids": True, **body}}) + "\n"
        for i, body in enumerate(bodies)))
    words = command("run-batch", "--served-model-name", MODEL_NAME, "-i", source, "-o", target,
                    *flags, mode=1 if tp * pp == 1 else 2, tp=tp, pp=pp)
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    ids = {int(line["custom_id"]): line["response"]["body"]["choices"][0]["token_ids"]
           for line in lines}
    return [ids[i] for i in range(len(bodies))]


def tokens_computed(trace):
    """Of all steps, on rank 0."""
    events = json.loads(trace.read_text())["traceEvents"]
    return sum(event["args"]["tokens"] for event in events
               if event["name"] == "forward" and event["pid"] == 0)


@pytest.mark.long
@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 2)])
def test_same_ids_whatever_the_scheduler_chooses(tmp_path, tp, pp):
    bodies = requests()
    apart = [body | {"cache_salt": str(i)} for i, body in enumerate(bodies)]  # nothing is shared
    trace = tmp_path / "trace.json"
    alone = answer(tmp_path, "alone", apart, ["--max-num-seqs", "1", "--profile", trace], tp, pp)
    assert [len(ids) for ids in alone] == [body["max_tokens"] for body in bodies]
    once = tokens_computed(trace)

    little = ["--max-num-seqs", "16", "--kv-cache-memory", LITTLE[tp, pp], "--profile", trace]
    answers = {name: answer(tmp_path, name, bodies, flags, tp, pp) for name, flags in WAYS.items()}
    answers["preempted"] = answer(tmp_path, "preempted", apart, little, tp, pp)
    assert tokens_computed(trace) > once  # who is preempted computes some positions again
    for name, ids in answers.items():
        different = [i for i, (a, b) in enumerate(zip(alone, ids)) if a != b]
        assert not different, f"{name}: requests {different} differ from what they are alone"
