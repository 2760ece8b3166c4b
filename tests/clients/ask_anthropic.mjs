// What Anthropic's package for Node.js does for its users, against the node at BASE.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";

const c = new Anthropic({ baseURL: process.env.BASE, apiKey: "none", maxRetries: 0 });
const asked = (text) => ({ model: "echo", max_tokens: 50, messages: [{ role: "user", content: text }] });

const whole = await c.messages.create(asked("one two"));
assert.equal(whole.content[0].text, "ECHO<one two>");
assert.equal(whole.stop_reason, "end_turn");
assert.ok(whole.usage.output_tokens > 0);

let said = "";
const stream = c.messages.stream(asked("one two")).on("text", (text) => (said += text));
assert.equal((await stream.finalMessage()).usage.output_tokens, whole.usage.output_tokens);
assert.equal(said, "ECHO<one two>");

const tools = [{ name: "Bash", input_schema: { type: "object", properties: { command: { type: "string" } } } }];
const called = await c.messages.stream({ ...asked("q"), model: "worker", tools }).finalMessage();
const call = called.content.find((block) => block.type === "tool_use");
assert.equal(called.stop_reason, "tool_use");
assert.match(call.input.command, /^echo /);
const told = await c.messages.create({
  ...asked("q"),
  model: "worker",
  tools,
  messages: [
    { role: "user", content: "q" },
    { role: "assistant", content: called.content },
    { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "42" }] },
  ],
});
assert.equal(told.content[0].text, "TOLD<42>");

assert.ok((await c.messages.countTokens({ model: "echo", messages: asked("one two").messages })).input_tokens > 0);
assert.ok((await c.models.list()).data.some((model) => model.id === "echo"));
for (const [model, kind] of [["nonesuch", Anthropic.NotFoundError], ["busy", Anthropic.RateLimitError], ["broken", Anthropic.InternalServerError]])
  await assert.rejects(c.messages.create({ ...asked("x"), model }), kind);
await assert.rejects(c.messages.stream({ ...asked("a b c d e"), model: "cut" }).finalMessage(), Anthropic.APIError);

const left = c.messages.stream(asked("one two three"));
left.on("text", () => left.abort());
await assert.rejects(left.done(), Anthropic.APIUserAbortError);
const many = await Promise.all([...Array(40).keys()].map((i) => c.messages.create(asked(String(i)))));
assert.deepEqual(many.map((each) => each.content[0].text), [...Array(40).keys()].map((i) => `ECHO<${i}>`));
console.log("done");
