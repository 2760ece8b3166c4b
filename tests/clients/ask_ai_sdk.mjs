// What Vercel's AI SDK does for its users, by each of the three shapes that it speaks, against the node at BASE.
import assert from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const how = { baseURL: process.env.BASE + "/v1", apiKey: "none" };
const compatible = createOpenAICompatible({ name: "shoal", includeUsage: true, supportsStructuredOutputs: true, ...how });
const openai = createOpenAI(how);
const anthropic = createAnthropic(how);
const schema = z.object({ word: z.string() });
const execute = async ({ command }) => "ran " + command;
const Bash = tool({ description: "Run it.", inputSchema: z.object({ command: z.string() }), execute });
const work = { prompt: "what is it?", tools: { Bash }, stopWhen: stepCountIs(3) };

async function all(parts) {
  let text = "";
  for await (const part of parts) text += part;
  return text;
}

async function ask(model, structured) {
  const prompt = "one two";
  const whole = await generateText({ model: model("echo"), prompt });
  assert.equal(whole.text, "ECHO<one two>");
  assert.equal(whole.finishReason, "stop");
  assert.ok(whole.usage.totalTokens > 0);
  const stream = streamText({ model: model("echo"), prompt });
  assert.equal(await all(stream.textStream), "ECHO<one two>");
  assert.ok((await stream.usage).outputTokens > 0);

  assert.match((await generateText({ model: model("worker"), ...work })).text, /^TOLD<ran echo/);
  assert.match(await all(streamText({ model: model("worker"), ...work }).textStream), /^TOLD<ran echo/);
  if (structured) {
    const wanted = { model: model("json"), prompt: '{"word":"cold"}', schema };
    assert.equal((await generateObject(wanted)).object.word, "cold");
    const parts = streamObject(wanted);
    for await (const _ of parts.partialObjectStream);
    assert.equal((await parts.object).word, "cold");
  }
  const picture = { type: "image", image: "data:image/png;base64,iVBORw0KGgo=" };
  const messages = [{ role: "user", content: [{ type: "text", text: "one" }, picture] }];
  assert.equal((await generateText({ model: model("echo"), messages })).text, "ECHO<one>");

  for (const [name, status, again] of [["busy", 429, true], ["broken", 502, true], ["nonesuch", 404, false]])
    await assert.rejects(generateText({ model: model(name), prompt, maxRetries: 0 }), (error) => {
      assert.ok(APICallError.isInstance(error), String(error));
      assert.deepEqual([error.statusCode, error.isRetryable], [status, again]);
      return true;
    });
  let broke = null;
  const cut = streamText({ model: model("cut"), prompt: "a b c d e", onError: ({ error }) => (broke = error) });
  await all(cut.textStream);
  assert.ok(broke, "a stream that was cut passed for a whole one");

  const left = new AbortController();
  for await (const _ of streamText({ model: model("echo"), prompt: "x ".repeat(200), abortSignal: left.signal }).textStream) left.abort();
}

await ask((name) => compatible(name), true);
await ask((name) => openai(name), true); // this one speaks /v1/responses
await ask((name) => openai.chat(name), true);
await ask((name) => anthropic(name), false);
const { embeddings } = await embedMany({ model: compatible.textEmbeddingModel("echo"), values: ["a", "b"] });
assert.deepEqual(embeddings.map((each) => each.length), [3, 3]);
console.log("done");
