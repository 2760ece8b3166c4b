// The list beside the graph: this node and its peers, each with what it has and says of itself.

import { age, bytes, byId, copy, count, counted, el, keyed, setText, shortPeer, some, span } from "./dom.js";
import { draw } from "./graph.js";
import { had } from "./sharing.js";

const state = { me: null, peers: [], busy: new Map(), chosen: null, models: [] };

const SHOWN_MODELS = 12;

const gpus = (hardware) => counted((hardware?.gpus ?? []).map((gpu) => (gpu.memory_bytes ? `${gpu.name}, ${bytes(gpu.memory_bytes)}` : gpu.name)));
const named = (node) => [...new Set((node.models ?? []).map((model) => String(model.name ?? model)))];

function machine(hardware) {
  const parts = gpus(hardware);
  if (hardware?.cores_usable) parts.push(`${Math.round(hardware.cores_usable * 10) / 10} cores`);
  if (hardware?.memory_bytes) parts.push(bytes(hardware.memory_bytes));
  return parts.join(" · ");
}

function rows(node) {
  const { hardware, load } = node;
  const working = [];
  if (load?.running) working.push(`${count(load.running)} running`);
  if (load?.queued) working.push(`${count(load.queued)} waiting`);
  const cpu = load?.cpu ?? (load?.cpu_percent !== undefined ? load.cpu_percent / 100 : undefined);
  if (typeof cpu === "number") working.push(`CPU ${Math.round(cpu * 100)} %`);
  if (load?.memory_available_bytes) working.push(`${bytes(load.memory_available_bytes)} free`);
  const told = (model) => [model.name ?? model, model.context_length ? `${count(model.context_length / 1024)}k context` : "", model.decode_tps ? `${count(model.decode_tps)} tokens/s` : "", model.first_token_ms ? `first token ${count(model.first_token_ms)} ms` : ""].filter(Boolean).join(", ");
  return [
    ["Processor", hardware?.cpu],
    ["GPU", gpus(hardware).join("\n")],
    ["Machine", [hardware?.cores_usable ? `${hardware.cores_usable} cores` : "", hardware?.memory_bytes ? bytes(hardware.memory_bytes) : "", hardware?.memory_gbs ? `${count(hardware.memory_gbs)} GB/s` : "", String(hardware?.os ?? "").replace(/-.*/, "")].filter(Boolean).join(" · ")],
    ["Load", working.join(" · ")],
    ["Models", some((node.models ?? []).map(told), SHOWN_MODELS).join("\n")],
    ["Shares", (node.providers ?? []).join(", ")],
    ["Has had", node.consumed ? had(node.consumed) : ""],
    ["Round trip", node.rtt_s ? span(node.rtt_s * 1000) : ""],
    ["Told this", node.told_at ? age(node.told_at) : ""],
    ["Connected", node.connected && node.since ? `for ${span(Date.now() - node.since * 1000)}` : ""],
    ["Version", node.version],
    ["Problem", node.connected === false ? node.problem : ""],
    ["Address", node.addresses?.[0]?.split("/p2p/")[0]],
  ].filter(([, value]) => value);
}

function entry(node, old) {
  const key = node.me ? "me" : node.peer;
  const open = state.chosen === key;
  const names = named(node);
  const line = node.connected === false ? `away${node.last_good ? `, seen ${age(node.last_good)}` : ""}`
    : names.length ? names.slice(0, 2).join(", ") + (names.length > 2 ? ` +${names.length - 2}` : "") : node.me ? "no provider is ready" : "shares nothing";
  const busy = node.me ? 0 : state.busy.get(node.peer) ?? 0;
  const running = busy || node.load?.running || 0;
  const item = old ?? el("li", {},
    el("button", { type: "button", class: "row", onclick: () => choose(key) },
      el("span", { class: "dot" }), el("span", { class: "who" }), el("span", { class: "load" }), el("span", { class: "offer" })),
    el("div", { class: "facts" }));
  const [button, facts] = item.children;
  const [dot, who, load, offer] = button.children;
  dot.className = `dot ${node.connected === false ? "off" : running ? "busy" : "on"}`;
  who.textContent = node.me ? "This node" : shortPeer(node.peer);
  who.className = node.me ? "who" : "who mono";
  setText(offer, [line, node.connected === false ? "" : machine(node.hardware)].filter(Boolean).join("\n"));
  load.textContent = running ? `${running} running` : node.connected === false ? "" : node.told_at ? age(node.told_at) : "";
  button.setAttribute("aria-expanded", String(open));
  item.className = open ? "open" : "";
  if (open) {
    const list = rows(node);
    const text = JSON.stringify(list) + node.peer;
    if (facts.dataset.text !== text) {
      facts.dataset.text = text;
      facts.replaceChildren(el("dl", {}, list.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
        el("p", { class: "id" }, el("code", {}, node.peer), el("button", { type: "button", class: "quiet text", onclick: (event) => copy(node.peer, event.currentTarget) }, "Copy id")));
    }
  } else if (facts.firstChild) {
    facts.replaceChildren();
    delete facts.dataset.text;
  }
  return item;
}

function choose(key) {
  state.chosen = state.chosen === key ? null : key;
  render();
  byId("peers").querySelector(":scope > .open")?.scrollIntoView({ block: "nearest" });
}

function render() {
  const me = state.me && { me: true, ...state.me, models: state.models };
  const there = [...state.peers].sort((one, other) => Number(other.connected) - Number(one.connected));
  byId("alone").hidden = state.peers.length > 0 || !state.me;
  keyed(byId("peers"), [...(me ? [me] : []), ...there], (node) => (node.me ? "me" : node.peer), entry);
  draw(byId("graph"), { peers: state.peers, busy: state.busy, chosen: state.chosen, choose });
}

export function showNode(node) {
  state.me = { peer: node.peer_id, hardware: node.hardware, load: node.load, version: node.version, addresses: node.swarm?.addresses };
  const button = byId("invite");
  const invite = node.swarm?.invite;
  setText(byId("alone"), invite ? "No peers yet. Copy the invite, and run it on another machine." : "No peers yet. The invite that another machine needs is in what \u201cshoal status\u201d says here.");
  button.hidden = !invite;
  button.onclick = () => copy(`shoal join ${invite}`, button);
  render();
}

export function showPeers(peers) {
  state.peers = peers;
  render();
}

export function showOwnModels(providers) {
  state.models = providers.filter((provider) => provider.ready).flatMap((provider) => provider.models ?? []);
  render();
}

export function showBusy(requests) {
  const busy = new Map();
  for (const request of requests) if (request.state === "live" && request.peer) busy.set(request.peer, (busy.get(request.peer) ?? 0) + 1);
  const same = busy.size === state.busy.size && [...busy].every(([peer, calls]) => state.busy.get(peer) === calls);
  state.busy = busy;
  if (!same) render();
}

new ResizeObserver(render).observe(byId("graph"));
