"""Greedy ids are the same however the model is cut: TP x PP in modes 2 and 3 against 1 x 1.

A difference counts as a tie only where the reference's own two logits lie within 1e-5; from there
on the two texts go their own ways and the rest of that prompt is not compared.
"""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import MODEL_NAME

TIE = 1e-5
LAYOUTS = [(2, tp, pp) for tp, pp in ((2, 1), (3, 1), (1, 2), (2, 2), (1, 4))] + \
          [(3, tp, pp) for tp, pp in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 4))]

PROMPTS = [
    "The history of the water wheel begins",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Die Hauptstadt von Deutschland ist",
    "To bake a loaf of bread you need",
    "In 1969 the first humans",
    "Q: What is 17 + 25?\nA:",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n\n",
    "SELECT name, age FROM people WHERE",
    "Once upon a time, in a village by the river,",
    "The mitochondria is",
    "1, 1, 2, 3, 5, 8,",
    "Photosynthesis is the process by which",
    "The best way to learn a language is",
    "Les feuilles mortes se",
    "A distributed system is one in which",
    "Ingredients:\n- 2 eggs\n-",
    "The sun rose over the mountains and",
    "{\"name\": \"Alice\", \"age\":",
    "Water boils at",
]


def complete(server, prompt, max_tokens):
    """(ids, logprobs) of one greedy completion; for each position the top two by token text."""
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True, "logprobs": 2}
    request = urllib.request.Request(f"{server.base}/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=900) as answer:
        choice = json.load(answer)["choices"][0]
    assert len(choice["token_ids"]) == max_tokens
    return choice["token_ids"], choice["logprobs"]


def complete_all(server, prompts, max_tokens):
    """All at once, so that the layouts are compared with full batches too."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda p: complete(server, p, max_tokens), prompts))


def difference(reference, other):
    """None if equal or tied, else a sentence."""
    (ids, logprobs), (other_ids, other_logprobs) = reference, other
    for at, (a, b) in enumerate(zip(ids, other_ids)):
        if a == b:
            continue
        top = logprobs["top_logprobs"][at]
        mine, theirs = logprobs["tokens"][at], other_logprobs["tokens"][at]
        if theirs in top and abs(top[mine] - top[theirs]) <= TIE:
            return None
        return f"position {at}: {a} ({mine!r}) against {b} ({theirs!r}), reference has {top}"
    return None


def compare(start, reference, layout, prompts, max_tokens):
    mode, tp, pp = layout
    server = start.serve(mode=mode, tp=tp, pp=pp)
    answers = complete_all(server, prompts, max_tokens)
    found = [f"{prompt!r}: {text}" for prompt, one, other in zip(prompts, reference, answers)
             if (text := difference(one, other))]
    assert not found, "\n".join(found)


@pytest.fixture(scope="module")
def short_reference(server):
    """Each prompt alone in mode 1: what every layout and every batch must repeat."""
    return [complete(server, prompt, 24) for prompt in PROMPTS[:3]]


@pytest.fixture(scope="module")
def long_reference(server):
    return [complete(server, prompt, 128) for prompt in PROMPTS]


def ids(layout):
    return "mode{}-tp{}-pp{}".format(*layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_same_ids(start, short_reference, layout):
    compare(start, short_reference, layout, PROMPTS[:3], 24)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS, ids=ids)
def test_same_ids_long(start, long_reference, layout):
    compare(start, long_reference, layout, PROMPTS, 128)


@pytest.mark.long
def test_same_ids_in_company(server, long_reference):
    """In one process ids repeat without exception, ties included, whatever else is in the batch."""
    answers = complete_all(server, PROMPTS, 128)
    assert [a[0] for a in answers] == [r[0] for r in long_reference]
