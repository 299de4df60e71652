"""Keys, figures and drain of `millrace serve`, seen by the openai Python client."""

import threading
import urllib.request

import openai
import pytest

from jobs import MODEL_NAME, command

GREEDY = {"model": MODEL_NAME, "temperature": 0}


def client(server, key):
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key=key, max_retries=0, timeout=300)


def figure(server, key, name):
    request = urllib.request.Request(f"{server.base}/metrics",
                                     headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def test_keys_figures_and_a_drain_that_ends_streams_whole(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsk-alice\nsk-bob\n")
    server = start.serve("--api-key-file", keys)
    with pytest.raises(openai.AuthenticationError) as caught:
        client(server, "sk-mallory").models.list()
    assert caught.value.code == "invalid_api_key"
    assert [model.id for model in client(server, "sk-bob").models.list()] == [MODEL_NAME]

    alice = client(server, "sk-alice")
    whole = alice.completions.create(prompt="Count: 1, 2,", max_tokens=60, **GREEDY)
    assert figure(server, "sk-bob", "vllm:generation_tokens_total") == whole.usage.completion_tokens
    assert figure(server, "sk-bob", "millrace:prompt_tokens_total") == whole.usage.prompt_tokens

    streams = [alice.completions.create(prompt="Count: 1, 2,", max_tokens=60, stream=True, **GREEDY)
               for _ in range(8)]
    first = [next(stream) for stream in streams]
    codes = []
    drain = threading.Thread(target=lambda: codes.append(server.stop()))
    drain.start()
    for begun, stream in zip(first, streams):
        rest = list(stream)
        text = "".join(chunk.choices[0].text for chunk in [begun, *rest])
        assert text == whole.choices[0].text
        assert rest[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    drain.join()
    assert codes == [0]


def test_a_key_file_without_keys_is_refused_before_the_model_is_loaded(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# none yet\n")
    code, _, stderr = start.run(command("serve", "--api-key-file", keys, model="no-such-model"))
    assert code == 9
    assert "has no API key" in stderr
