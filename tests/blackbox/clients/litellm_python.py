"""LiteLLM, which calls a vLLM-like server hosted_vllm/: BASE_URL KEY, and what to do."""

import sys

import litellm

base, key, what = sys.argv[1:]
ask = {"model": "hosted_vllm/" + ("nobody" if what == "unknown" else "smollm2"), "api_base": base,
       "api_key": key, "max_tokens": 12, "temperature": 9 if what == "bad" else 0,
       "messages": [{"role": "user", "content": "Name three colours."}]}
if what == "use":
    whole = litellm.completion(**ask, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert text and len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    chunks = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
else:
    kind = {"bad": litellm.BadRequestError, "unknown": litellm.NotFoundError,
            "key": litellm.AuthenticationError,
            "busy": (litellm.ServiceUnavailableError, litellm.InternalServerError)}[what]
    try:
        litellm.completion(**ask)
        sys.exit("no error")
    except kind as error:
        assert str(error), error
