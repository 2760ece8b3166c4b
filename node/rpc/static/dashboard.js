// The page's beginning: sections of the feed go to their panels.

import { showModels } from "./ask.js";
import { byId, bytes, setText, span } from "./dom.js";
import { follow, token } from "./feed.js";
import { showCache, showFigures, showProviders, showRequests } from "./panels.js";
import { showSharing } from "./sharing.js";
import { showBusy, showNode, showOwnModels, showPeers } from "./swarm.js";

// -- colours: as the system, or as chosen here

const THEMES = ["system", "light", "dark"];
const button = byId("theme");

let chosen = "system";
try {
  if (THEMES.includes(localStorage.getItem("shoal-theme"))) chosen = localStorage.getItem("shoal-theme");
} catch { /* a browser that keeps nothing */ }

function theme(name) {
  chosen = name;
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.setAttribute("aria-label", `Colours: ${name === "system" ? "as the system" : name}`);
  button.title = button.getAttribute("aria-label");
  try { localStorage.setItem("shoal-theme", name); } catch { /* until the page is left */ }
}

theme(chosen);
button.addEventListener("click", () => theme(THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]));

// -- what the node says

const sections = {
  node(node) {
    const swarm = node.swarm ?? {};
    setText(byId("swarm-name"), swarm.name ? `${swarm.name}${swarm.private ? ", private" : ""}` : "");
    document.title = swarm.name && swarm.name !== "shoal" ? `Shoal · ${swarm.name}` : "Shoal";
    setText(byId("foot"), [`Shoal ${node.version ?? ""}`, `up ${span((node.uptime_s ?? 0) * 1000)}`, `RPC ${node.rpc ?? location.origin}/v1`,
      node.load?.memory_available_bytes ? `${bytes(node.load.memory_available_bytes)} memory free` : ""].filter(Boolean).join("   ·   "));
    showNode(node);
  },
  peers({ peers }) {
    showPeers(peers);
    showFigures({ peers });
  },
  providers({ providers }) {
    showProviders(providers);
    showOwnModels(providers);
  },
  models: ({ data }) => showModels(data),
  cache: showCache,
  sharing: showSharing,
  requests(found) {
    showRequests(found);
    showFigures({ requests: found });
    showBusy(found.requests);
  },
};

// -- the line to the node

const dialog = byId("token");
const unlock = byId("unlock");
let heard = null;

function said(name) {
  byId("link").dataset.state = name;
  document.body.dataset.state = name;
  const since = heard ? `, last heard ${heard.toLocaleTimeString("en-GB")}` : "";
  setText(byId("link-text"), { live: "Live", lost: `Reconnecting${since}`, token: "Locked" }[name]);
  unlock.hidden = name !== "token";
}

function state(name) {
  if (name === "live") heard = new Date();
  else if (heard && byId("link").dataset.state === "live") heard = new Date();
  said(name);
  return name === "token" ? entered() : undefined;
}

// Until a token was given. The dialog can be left; then the page stays locked, and a button opens it again.
async function entered() {
  setText(byId("token-wrong"), token.get() ? "The node does not know this token, or it has expired." : "");
  byId("token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  for (;;) {
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    const value = byId("token-value").value.trim();
    if (dialog.returnValue === "connect" && value) {
      token.set(value);
      return;
    }
  }
}

unlock.addEventListener("click", () => dialog.showModal());

follow(sections, state);
