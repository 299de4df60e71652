"""LangChain's ChatOpenAI: BASE_URL KEY, and what to do."""

import sys

import openai
from langchain_openai import ChatOpenAI

base, key, what = sys.argv[1:]
model = ChatOpenAI(base_url=base, api_key=key, temperature=9 if what == "bad" else 0, max_tokens=12,
                   model="nobody" if what == "unknown" else "smollm2", stream_usage=True)
if what == "use":
    answer = model.bind(logprobs=True, top_logprobs=2).invoke("Name three colours.")
    used = answer.usage_metadata["output_tokens"]
    assert answer.content and len(answer.response_metadata["logprobs"]["content"]) == used
    chunks = list(model.stream("Name three colours."))
    assert "".join(c.content for c in chunks) == answer.content
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) == used
else:
    kind = {"bad": openai.BadRequestError, "unknown": openai.NotFoundError,
            "key": openai.AuthenticationError, "busy": openai.InternalServerError}[what]
    try:
        model.invoke("Name three colours.")
        sys.exit("no error")
    except kind as error:
        assert error.body["message"], error
