// Figures, requests, providers, cache.

import { byId, bytes, clock, copy, count, el, keyed, percent, setText, shortPeer, span } from "./dom.js";
import { showRate } from "./spark.js";

// -- the figures at the top

export function showFigures({ requests, peers }) {
  if (peers) {
    const near = peers.filter((peer) => peer.connected).length;
    setText(byId("f-peers"), count(near));
    setText(byId("f-peers-aside"), peers.length > near ? `${count(peers.length - near)} away` : near ? "all connected" : "none yet");
  }
  if (requests) {
    setText(byId("f-live"), count(requests.live));
    const joined = requests.live - requests.in_flight;
    const writing = requests.requests.filter((row) => row.state === "live" && row.tokens).length;
    setText(byId("f-live-aside"), joined > 0 ? `${count(joined)} sharing an answer` : requests.live ? `${count(writing)} writing` : "quiet");
    showRate(requests.tokens_per_s);
    setText(byId("f-rate"), requests.tokens_per_s ? count(requests.tokens_per_s) : "0");
    setText(byId("f-rate-aside"), requests.output_tokens ? `${count(requests.output_tokens)} since the start` : requests.live ? "" : "none yet");
    const answers = requests.finished.ok ?? 0;  // and not what nobody answered
    const cached = ["memory", "disk", "swarm", "dht", "ipfs"].reduce((sum, tier) => sum + (requests.by_cache[tier] ?? 0), 0);
    setText(byId("f-cache"), percent(cached, answers));
    setText(byId("f-cache-aside"), answers ? `of ${count(answers)} ${answers === 1 ? "answer" : "answers"}` : "no answers yet");
  }
}

// -- requests

const TIERS = { memory: "from memory", disk: "from disk", swarm: "from the swarm", dht: "from the DHT", ipfs: "from IPFS" };
const SHOWN_REQUESTS = 30;
const WORDS = { ok: "answered", cancelled: "caller left", live: "" };

const where = (row) => (row.peer ? `peer ${shortPeer(row.peer)}` : "");
const outcome = (text) => (WORDS[text] ?? String(text).replaceAll("_", " "));

function step(attempt) {
  const failed = attempt.outcome !== "ok" && attempt.outcome !== "live";
  return el("li", { class: attempt.outcome === "cancelled" ? "cancelled" : failed ? "failed" : attempt.outcome, title: attempt.reason || false },
    el("span", { class: "step" }, attempt.provider),
    failed && el("span", { class: "why" }, outcome(attempt.outcome)),
    attempt.ms ? el("span", { class: "ms" }, span(attempt.ms)) : null);
}

function line(row, had) {
  const text = JSON.stringify(row);
  if (had?.dataset.text === text) return had;
  const live = row.state === "live";
  const ok = row.state === "ok";
  const tier = TIERS[row.cache];
  const by = tier ? `${tier}, by ${row.provider ?? "unknown"}` : row.provider ?? "nobody";
  const route = row.route ?? [];
  const told = route.length > 1 || route.some((attempt) => !["ok", "live", "cancelled"].includes(attempt.outcome));
  const speed = row.tokens_per_s ? `${count(row.tokens_per_s)} tok/s` : "";
  const tokens = row.tokens ? `${count(row.tokens)} tokens` : "";
  const item = el("li", { class: `request ${live ? "live" : ok ? "ok" : row.state === "cancelled" ? "gone" : "bad"}` },
    el("span", { class: "time" }, live ? "now" : clock(row.at)),
    el("span", { class: "model", title: row.model }, row.model ?? "any model", row.times > 1 && el("span", { class: "times" }, ` ×${count(row.times)}`)),
    el("span", { class: "by" }, [by, where(row) && !String(by).startsWith("peer:") ? where(row) : "", row.caller !== "local" ? `for ${shortPeer(row.caller)}` : ""].filter(Boolean).join(" · ")),
    el("span", { class: "speed" }, [tokens, speed].filter(Boolean).join(" · ")),
    el("span", { class: "took" }, live || ok ? span(row.ms) : outcome(row.state)),
    told ? el("ol", { class: "route", "aria-label": "Route" }, route.map(step)) : null,
    row.reason ? el("p", { class: "reason" }, row.reason) : null);
  item.dataset.text = text;
  return item;
}

export function showRequests(found) {
  const list = byId("requests");
  const beyond = found.live > SHOWN_REQUESTS ? `, ${SHOWN_REQUESTS} of them here` : "";
  setText(byId("requests-note"), found.live ? `${count(found.live)} live${beyond}` : "");
  if (!found.requests.length) {
    if (list.querySelector(":scope > .none")) return;
    const address = `${location.origin}/v1`;
    list.replaceChildren(el("li", { class: "none" }, "Nothing asked yet. Use the box above, or point a client at ", el("code", {}, address), ". ",
      el("button", { type: "button", class: "quiet text", "aria-label": "Copy the address for clients", onclick: (event) => copy(address, event.currentTarget) }, "Copy")));
    return;
  }
  list.querySelector(":scope > .none")?.remove();
  keyed(list, found.requests.slice(0, SHOWN_REQUESTS), (row) => row.id, line);
}

// -- providers

function provider(row, had) {
  const text = JSON.stringify(row);
  if (had?.dataset.text === text) return had;
  const names = (row.models ?? []).map((model) => model.name);
  const item = el("li", {},
    el("span", { class: `dot ${row.ready ? (row.waits?.length ? "warn" : "on") : row.configured ? "bad" : "off"}` }),
    el("span", { class: "name" }, row.name),
    el("span", { class: "state" }, row.waits?.length ? "resting" : row.ready ? (row.share ? "ready, shared" : "ready") : row.configured ? "not ready" : ""),
    el("span", { class: "what", title: !row.ready && row.reason }, row.ready ? names.slice(0, 4).join(", ") + (names.length > 4 ? ` and ${names.length - 4} more` : "") : row.reason),
    (row.waits ?? []).map((held) => el("span", { class: "what" }, `${held.model && held.model !== "*" ? `${held.model}: ` : ""}${outcome(held.kind)}, ${held.until_s ? `asked again in ${held.until_s} s` : "asked again now"}`)),
    row.failures ? el("span", { class: "what" }, `${count(row.failures)} ${row.failures === 1 ? "failure" : "failures"} since the start`) : null);
  item.dataset.text = text;
  return item;
}

export function showProviders(rows) {
  const used = rows.filter((row) => row.configured);
  const unset = rows.filter((row) => !row.configured);
  const ready = used.filter((row) => row.ready).length;
  setText(byId("providers-note"), used.length ? `${ready} of ${used.length} ready` : "");
  byId("providers").querySelector(":scope > .none")?.remove();
  keyed(byId("providers"), used, (row) => row.name, provider);
  if (!used.length) byId("providers").append(el("li", { class: "none" }, "None in use: what is asked here goes to peers."));
  byId("unset").hidden = !unset.length;
  setText(byId("unset-title"), `${unset.length} more not set up`);
  keyed(byId("unset-list"), unset, (row) => row.name, provider);
}

// -- cache

const SHADES = [["memory", "Memory"], ["disk", "Disk"], ["swarm", "Swarm"], ["dht", "DHT"], ["ipfs", "IPFS"]];

function meter(name, tier) {
  const part = tier.max_bytes ? Math.min(1, tier.bytes / tier.max_bytes) : 0;
  const fill = el("span", {});
  fill.style.setProperty("width", `${Math.max(part * 100, tier.bytes ? 0.8 : 0)}%`);
  return el("div", { class: "meter" },
    el("div", { class: "legend" }, el("span", {}, name), el("span", { class: "dim" }, `${count(tier.answers)} ${tier.answers === 1 ? "answer" : "answers"}, ${bytes(tier.bytes)} of ${bytes(tier.max_bytes)}`)),
    el("div", { class: "track", role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": tier.max_bytes, "aria-valuenow": tier.bytes, "aria-valuetext": `${bytes(tier.bytes)} of ${bytes(tier.max_bytes)}` }, fill));
}

export function showCache(found) {
  const box = byId("cache");
  if (!found.enabled) {
    setText(byId("cache-note"), "off");
    box.replaceChildren(el("p", { class: "dim" }, "This node keeps no answers; set cache.enabled = true."));
    return;
  }
  const hits = SHADES.map(([tier, name]) => [tier, name, found.hits[tier] ?? 0]).filter(([, , number]) => number);
  const all = hits.reduce((sum, [, , number]) => sum + number, 0) + found.misses;
  setText(byId("cache-note"), all ? `${count(all - found.misses)} of ${count(all)} look-ups found` : "");
  const segments = [...hits, ["miss", "Missed", found.misses]].filter(([, , number]) => number).map(([tier, name, number]) => {
    const part = el("span", { class: `seg ${tier}`, title: `${name}: ${count(number)}` });
    part.style.setProperty("flex-grow", number);
    return part;
  });
  const refused = Object.values(found.refused ?? {}).reduce((sum, number) => sum + number, 0);
  box.replaceChildren(
    ...(all ? [el("div", { class: "stack", role: "img", "aria-label": hits.map(([, name, number]) => `${name} ${number}`).concat(`missed ${found.misses}`).join(", ") }, segments),
      el("ul", { class: "keys" }, [...hits, ["miss", "Missed", found.misses]].filter(([, , number]) => number).map(([tier, name, number]) => el("li", {}, el("i", { class: `seg ${tier}` }), name, " ", el("b", {}, count(number)))))] : []),
    meter("Memory", found.memory),
    ...(found.disk ? [meter("Disk", found.disk)] : []),
    ...(refused ? [el("p", { class: "what" }, `${count(refused)} ${refused === 1 ? "record" : "records"} from elsewhere refused: ${Object.entries(found.refused).map(([why, number]) => `${why} ${number}`).join(", ")}`)] : []));
}
