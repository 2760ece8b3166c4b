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

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.setAttribute("aria-label", `Colours: ${name === "system" ? "as the system" : name}`);
  button.title = button.getAttribute("aria-label");
  localStorage.setItem("shoal-theme", name);
}

const chosen = () => (THEMES.includes(localStorage.getItem("shoal-theme")) ? localStorage.getItem("shoal-theme") : "system");
theme(chosen());
button.addEventListener("click", () => theme(THEMES[(THEMES.indexOf(chosen()) + 1) % THEMES.length]));

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

async function state(name) {
  byId("link").dataset.state = name;
  setText(byId("link-text"), { live: "Live", lost: "Reconnecting", token: "Locked" }[name]);
  if (name !== "token") return;
  const dialog = byId("token");
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  token.set(byId("token-value").value.trim());
}

follow(sections, state);
