"""The openai Python client, unchanged, against `millrace serve`."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from jobs import MODEL_NAME

QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]
GREEDY = {"model": MODEL_NAME, "temperature": 0}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0,
                       timeout=300) as one:
        yield one


def test_lists_models(client):
    models = list(client.models.list())
    assert [m.id for m in models] == [MODEL_NAME]
    assert models[0].object == "model"
    assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME


def test_completes(client):
    answer = client.completions.create(prompt="The capital of France is", max_tokens=8, **GREEDY)
    assert answer.object == "text_completion"
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 8 and usage.prompt_tokens >= 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chats(client):
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=32, **GREEDY)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    message = answer.choices[0].message
    assert message.role == "assistant" and message.content.strip()


def test_chat_stream_is_the_whole_answer_in_pieces(client):
    whole = client.chat.completions.create(messages=QUESTION, max_tokens=32, **GREEDY)
    chunks = list(client.chat.completions.create(
        messages=QUESTION, max_tokens=32, stream=True, stream_options={"include_usage": True},
        **GREEDY))
    assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] == whole.choices[0].finish_reason and set(ends[:-1]) <= {None}


def test_completion_stream_is_the_whole_answer_in_pieces(client):
    request = {"prompt": "Once upon a time", "max_tokens": 24, **GREEDY}
    whole = client.completions.create(**request).choices[0].text
    pieces = [c.choices[0].text for c in client.completions.create(stream=True, **request)]
    assert len(pieces) > 4 and "".join(pieces) == whole


def test_several_prompts_and_choices_keep_their_index(client):
    answer = client.completions.create(prompt=["One, two,", "Red, green,"], n=2, max_tokens=4,
                                       seed=7, model=MODEL_NAME)
    assert sorted(c.index for c in answer.choices) == [0, 1, 2, 3]


def test_stop_string_ends_and_is_left_out(client):
    request = {"prompt": "1, 2, 3, 4,", "max_tokens": 32, **GREEDY}
    assert "7" in client.completions.create(**request).choices[0].text
    answer = client.completions.create(stop=["7"], **request).choices[0]
    assert "7" not in answer.text and answer.finish_reason == "stop"


def test_logprobs(client):
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=5, logprobs=True,
                                            top_logprobs=3, **GREEDY)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == max(t.logprob for t in token.top_logprobs)
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)  # greedy


def test_an_echo_scores_the_text_as_it_was_generated(client):
    prompt = "The capital of France is"
    made = client.completions.create(prompt=prompt, max_tokens=8, logprobs=2, **GREEDY).choices[0]
    echo = client.completions.create(prompt=prompt + made.text, max_tokens=0, echo=True, logprobs=2,
                                     **GREEDY).choices[0]
    assert echo.text == prompt + made.text
    count = len(made.logprobs.tokens)
    assert echo.logprobs.tokens[-count:] == made.logprobs.tokens
    assert echo.logprobs.token_logprobs[0] is None
    assert echo.logprobs.token_logprobs[-count:] == made.logprobs.token_logprobs
    assert echo.logprobs.top_logprobs[-count:] == made.logprobs.top_logprobs
    assert echo.logprobs.text_offset[-count:] == [len(prompt) + at for at in made.logprobs.text_offset]


def test_logit_bias(client):
    def ids(**bias):
        return client.completions.create(prompt="The capital of France is", max_tokens=4, **GREEDY, **bias,
                                         extra_body={"return_token_ids": True}).choices[0].token_ids

    first = ids()[0]
    assert ids(logit_bias={str(first): 100}) == [first] * 4
    assert first not in ids(logit_bias={str(first): -100})


def test_seed_repeats_and_another_seed_differs(client):
    def ask(seed):
        return client.completions.create(model=MODEL_NAME, prompt="My favourite animal is",
                                         max_tokens=24, temperature=1.0, seed=seed).choices[0].text
    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_answers_do_not_depend_on_company(client):
    """Greedy answers alone and among eleven others are equal, without exception."""
    prompts = [f"Here are {n} facts about the number {n}:" for n in range(2, 14)]

    def ask(prompt):
        return client.completions.create(prompt=prompt, max_tokens=16, **GREEDY).choices[0].text
    alone = [ask(p) for p in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == alone


@pytest.mark.parametrize("field, value", [("temperature", 9.0), ("top_p", -0.5), ("n", 100_000),
                                          ("max_tokens", -1), ("presence_penalty", 7.0)])
def test_bad_value_is_a_bad_request_that_names_the_field(client, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=QUESTION, model=MODEL_NAME, **{field: value})
    assert caught.value.status_code == 400
    assert caught.value.param == field and caught.value.type == "invalid_request_error"


def test_too_long_prompt(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="word " * 20_000, max_tokens=4, **GREEDY)
    assert caught.value.code == "context_length_exceeded"


def test_unknown_model_and_route(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert "no-such-model" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL_NAME, input="x")


def test_a_client_that_leaves_harms_nobody(client):
    for _ in range(3):
        stream = client.completions.create(prompt="Count to a thousand: 1, 2,", max_tokens=400,
                                           stream=True, **GREEDY)
        next(iter(stream))
        stream.close()
    assert client.completions.create(prompt="The capital of France is", max_tokens=8,
                                     **GREEDY).choices[0].text
