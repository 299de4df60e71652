"""openai's Python client: BASE_URL KEY, and what to do."""

import sys

import openai

base, key, what = sys.argv[1:]
client = openai.OpenAI(base_url=base, api_key=key)  # with its own two retries
ask = {"model": "smollm2", "messages": [{"role": "user", "content": "Name three colours."}],
       "max_tokens": 12, "temperature": 0}
if what == "use":
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert text and len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**ask, stream=True,
                                                 stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == whole.usage
else:
    kind = {"bad": openai.BadRequestError, "unknown": openai.NotFoundError,
            "key": openai.AuthenticationError, "busy": openai.InternalServerError}[what]
    ask.update({"bad": {"temperature": 9}, "unknown": {"model": "nobody"}}.get(what, {}))
    try:
        client.chat.completions.create(**ask)
        sys.exit("no error")
    except kind as error:
        assert error.body["message"], error
