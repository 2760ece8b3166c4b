// The prompt box: one question, its answer as it comes, and who gave it.

import { byId, copy, count, el, keyed, setText, shortPeer, span } from "./dom.js";
import { ask, events } from "./feed.js";

const form = byId("ask");
const prompt = byId("prompt");
const model = byId("model");
const send = byId("send");
const box = byId("answer");
const text = byId("answer-text");
const about = byId("answer-about");
let running = null;

function fit() {
  prompt.style.setProperty("height", "auto");
  prompt.style.setProperty("height", `${Math.min(prompt.scrollHeight, 240)}px`);
}

// The end of a long answer stays in view as it grows, until somebody scrolls up.
function say(words) {
  const follows = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
  text.append(words);
  if (text.scrollHeight <= text.clientHeight) return;
  text.tabIndex = 0;  // so that arrow keys can scroll it
  if (follows) text.scrollTop = text.scrollHeight;
}

export function showModels(models) {
  const names = ["", ...models.map((entry) => entry.id)];
  const before = model.value;
  keyed(model, names, (name) => name, (name, had) => had ?? el("option", { value: name }, name || "Any model"));
  if (!names.includes(before)) model.value = "";
}

function facts(headers, last, timing) {
  const shoal = last.shoal ?? {};
  const provider = shoal.provider ?? headers.get("x-shoal-provider");
  const peer = shoal.peer ?? headers.get("x-shoal-peer");
  const cache = shoal.cache ?? headers.get("x-shoal-cache");
  const tokens = last.usage?.completion_tokens;
  const parts = [provider];
  if (peer && peer !== "local") parts.push(`on peer ${shortPeer(peer)}`);
  if (["memory", "disk", "swarm", "dht", "ipfs"].includes(cache)) parts.push(`from the cache (${cache})`);
  if (timing.first) parts.push(`first token ${span(timing.first)}`);
  if (tokens > 1 && timing.total > timing.first + 5 && cache === "miss") parts.push(`${count(((tokens - 1) * 1000) / (timing.total - timing.first))} tokens/s`);
  parts.push(span(timing.total));
  about.replaceChildren(parts.filter(Boolean).join(" · "));
  if (shoal.cid) {
    about.append(" ", el("button", { type: "button", class: "quiet text mono", title: shoal.cid, onclick: (event) => copy(shoal.cid, event.currentTarget, "CID copied") }, `${shoal.cid.slice(0, 8)}…${shoal.cid.slice(-6)}`));
  }
}

function problem(message) {
  box.classList.add("failed");
  about.replaceChildren(message);
}

async function run(question, chosen, signal) {
  const began = performance.now();
  const timing = { first: 0, total: 0 };
  const body = { messages: [{ role: "user", content: question }], stream: true, stream_options: { include_usage: true } };
  if (chosen) body.model = chosen;
  const response = await ask("/v1/chat/completions", { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    throw new Error(found.error?.message ?? `The node answered with status ${response.status}.`);
  }
  const last = {};
  for await (const { data } of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.content) {
      timing.first ||= performance.now() - began;
      say(delta.content);
    } else if (!timing.first && (delta.reasoning_content || delta.reasoning)) {
      setText(about, "Thinking");
    }
    if (chunk.usage) last.usage = chunk.usage;
    if (chunk.shoal) last.shoal = chunk.shoal;
  }
  timing.total = performance.now() - began;
  text.normalize();  // one text, and not one for each token
  if (!text.textContent) text.append(el("span", { class: "dim" }, "The answer has no text."));
  facts(response.headers, last, timing);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const question = prompt.value.trim();
  if (!question) {
    prompt.focus();
    return;
  }
  running = new AbortController();
  box.hidden = false;
  box.className = "answer running";
  text.setAttribute("aria-busy", "true");
  text.replaceChildren();
  text.removeAttribute("tabindex");
  about.replaceChildren("Waiting for the first token");
  send.textContent = "Stop";
  try {
    await run(question, model.value, running.signal);
  } catch (error) {
    if (error.name === "AbortError") about.replaceChildren("Stopped; the work was cancelled.");
    else problem(error instanceof TypeError ? "The node cannot be reached." : error.message);
  } finally {
    running = null;
    send.textContent = "Ask";
    box.classList.remove("running");
    text.setAttribute("aria-busy", "false");
  }
});

prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) form.requestSubmit();
  }
});
prompt.addEventListener("input", fit);
