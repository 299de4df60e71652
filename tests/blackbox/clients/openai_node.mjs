// openai's Node client: BASE_URL KEY, and what to do.
import assert from "node:assert";
import { createRequire } from "node:module";

const OpenAI = createRequire(process.env.MILLRACE_NODE_MODULES + "/")("openai").default;
const [base, key, what] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: key }); // with its own two retries
const ask = {
  model: what === "unknown" ? "nobody" : "smollm2",
  messages: [{ role: "user", content: "Name three colours." }],
  max_tokens: 12,
  temperature: what === "bad" ? 9 : 0,
};
if (what === "use") {
  const whole = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 });
  const text = whole.choices[0].message.content;
  assert(text);
  assert.equal(whole.choices[0].logprobs.content.length, whole.usage.completion_tokens);
  let streamed = "", last;
  for await (last of await client.chat.completions.create({
    ...ask, stream: true, stream_options: { include_usage: true } }))
    streamed += last.choices[0]?.delta?.content ?? "";
  assert.equal(streamed, text);
  assert.deepEqual(last.usage, whole.usage);
} else {
  const kind = { bad: OpenAI.BadRequestError, unknown: OpenAI.NotFoundError,
    key: OpenAI.AuthenticationError, busy: OpenAI.InternalServerError }[what];
  await assert.rejects(client.chat.completions.create(ask), (error) => {
    assert(error instanceof kind, String(error));
    assert(error.error.message);
    return true;
  });
}
