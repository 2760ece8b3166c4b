// What this node lends to peers: who has had what, what is left of today's limits, and the pause.

import { age, byId, count, el, keyed, setText, shortPeer } from "./dom.js";
import { ask } from "./feed.js";

const MOST = 6;

export const had = (account) => `${count(account.requests)} ${account.requests === 1 ? "request" : "requests"}, ${count(account.prompt_tokens + account.completion_tokens)} tokens`;

function row(entry, old) {
  const text = JSON.stringify(entry);
  if (old?.dataset.text === text) return old;
  const [peer, account] = entry;
  const item = el("li", {},
    el("span", { class: "name mono" }, shortPeer(peer)),
    el("span", { class: "state" }, age(account.last)),
    el("span", { class: "what" }, had(account)));
  item.dataset.text = text;
  return item;
}

function limits(found) {
  const lines = [];
  const told = (name, rule) => {
    const parts = [];
    if (rule.tokens_per_day) parts.push(`${count(found.tokens_today[name] ?? 0)} of ${count(rule.tokens_per_day)} tokens today`);
    if (rule.requests_per_minute) parts.push(`${count(rule.requests_per_minute)} requests a minute`);
    if (rule.concurrent) parts.push(`${count(rule.concurrent)} at once`);
    if (rule.hours?.length) parts.push(rule.hours.join(", "));
    if (parts.length) lines.push(el("li", {}, el("span", { class: "name" }, name), el("span", { class: "what" }, parts.join(" · "))));
  };
  for (const [provider, rule] of Object.entries(found.limits ?? {})) {
    told(provider, rule);
    for (const [model, own] of Object.entries(rule.models ?? {})) told(`${provider}/${model}`, own);
  }
  return lines;
}

async function turn(paused) {
  if (turning) return;  // and not a disabled button, which would lose the focus
  turning = true;
  try {
    const response = await ask(paused ? "/shoal/v1/resume" : "/shoal/v1/pause", { method: "POST", body: "{}" });
    const said = await response.json();
    if (response.ok) showSharing({ ...said, shares: shown.shares });
    else setText(byId("sharing-said"), said.error?.message ?? "That did not work.");
  } catch {
    setText(byId("sharing-said"), "The node does not answer.");
  }
  turning = false;
}

let turning = false;
let shown = { shares: [] };

export function showSharing(found) {
  shown = found;
  const accounts = Object.entries(found.peers ?? {}).sort((one, other) => other[1].last - one[1].last);
  const shares = found.shares ?? [];
  byId("sharing").hidden = !shares.length && !accounts.length && !found.paused;
  const until = found.paused_until ? ` until ${new Date(found.paused_until * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })}` : "";
  setText(byId("sharing-note"), found.paused ? `paused${until}` : "");
  setText(byId("sharing-said"), found.paused ? "Peers get nothing now; what is under way goes on." : shares.length ? `Peers may use ${shares.join(", ")}.` : "No provider is shared.");
  const button = byId("pause");
  setText(button, found.paused ? "Resume" : "Pause");
  button.onclick = () => turn(shown.paused);
  byId("sharing-limits").replaceChildren(...limits(found));
  keyed(byId("accounts"), accounts.slice(0, MOST), ([peer]) => peer, row);
  setText(byId("accounts-more"), accounts.length > MOST ? `and ${count(accounts.length - MOST)} more` : "");
}
