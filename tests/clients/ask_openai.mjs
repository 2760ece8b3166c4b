// What OpenAI's package for Node.js does for its users, against the node at BASE.
import assert from "node:assert";
import OpenAI from "openai";

const c = new OpenAI({ baseURL: process.env.BASE + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "one two" }];
const tools = [{ type: "function", function: { name: "bash", parameters: { type: "object", properties: {} } } }];

const { data: whole, response: head } = await c.chat.completions.create({ model: "echo", messages }).withResponse();
assert.equal(whole.choices[0].message.content, "ECHO<one two>");
assert.ok(whole.usage.total_tokens > 0);
assert.equal(head.headers.get("x-shoal-provider"), "plain");

let said = "";
let usage = null;
const options = { include_usage: true };
for await (const x of await c.chat.completions.create({ model: "echo", messages, stream: true, stream_options: options })) {
  said += x.choices[0]?.delta?.content ?? "";
  usage = x.usage ?? usage;
}
assert.equal(said, "ECHO<one two>");
assert.ok(usage.total_tokens > 0);

const called = await c.chat.completions.stream({ model: "caller", messages, tools }).finalChatCompletion();
const message = called.choices[0].message;
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { command: "touch X" });
const results = message.tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "done" }));
const told = await c.chat.completions.create({ model: "echo", messages: [...messages, message, ...results], tools });
assert.equal(told.choices[0].message.content, "ECHO<one two>");

const schema = { type: "object", properties: { word: { type: "string" } }, required: ["word"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "said", strict: true, schema } };
const wanted = [{ role: "user", content: JSON.stringify({ word: "cold" }) }];
const parsed = await c.chat.completions.parse({ model: "json", messages: wanted, response_format: format });
assert.equal(JSON.parse(parsed.choices[0].message.content).word, "cold");

const response = await c.responses.create({ model: "echo", input: "one two" });
assert.equal(response.output_text, "ECHO<one two>");
const vectors = await c.embeddings.create({ model: "echo", input: ["a", "b"] });
assert.deepEqual(vectors.data.map((each) => each.embedding.length), [3, 3]);
assert.ok((await c.models.list()).data.some((model) => model.id === "echo"));

for (const [model, kind] of [["nonesuch", OpenAI.NotFoundError], ["busy", OpenAI.RateLimitError], ["broken", OpenAI.InternalServerError]])
  await assert.rejects(c.chat.completions.create({ model, messages }), kind);
await assert.rejects(async () => {
  for await (const _ of await c.chat.completions.create({ model: "cut", messages: [{ role: "user", content: "a b c d e" }], stream: true }));
}, OpenAI.APIError);

const early = await c.chat.completions.create({ model: "echo", messages, stream: true });
for await (const _ of early) break;
console.log("done");
