// The swarm as this node sees it: itself in the middle, its peers around, a line for each session.

import { shortPeer, span, svg } from "./dom.js";

const SHOWN = 80;
const REACHES = [[1], [1, 0.62], [1, 0.72, 0.44]];

// How many names a graph has room for: all with what they offer, the outer ring's ids, or none.
const FULL = 10;
const OUTER = 30;

// Places on one ellipse, on two or three when there are many; the first stands at the upper right, the top stays free.
export function places(number, width, height, narrow) {
  const rings = number > 40 ? 3 : number > (narrow ? 8 : FULL) ? 2 : 1;
  const marginX = number > OUTER ? 28 : narrow ? 54 : rings > 1 ? 84 : 146;
  const marginY = number > OUTER ? 28 : 54;
  const rx = Math.max(40, width / 2 - marginX);
  const ry = Math.max(40, height / 2 - marginY);
  return Array.from({ length: number }, (_, index) => {
    const angle = number === 1 ? 0 : -Math.PI / 2 + ((index + 0.5) * 2 * Math.PI) / number;
    const ring = index % rings;
    const reach = REACHES[rings - 1][ring];
    return { x: width / 2 + rx * reach * Math.cos(angle), y: height / 2 + ry * reach * Math.sin(angle), angle, ring };
  });
}

// The lines beside a node. An inner one has them only while something goes on there.
function words(peer, spot, offer, { number, narrow, special }) {
  if (number > OUTER || (number > (narrow ? 8 : FULL) && spot.ring)) return special ? [shortPeer(peer.peer)] : [];
  return narrow || number > FULL ? [shortPeer(peer.peer)] : [shortPeer(peer.peer), offer];
}

// Whether a node's name stands beside it, where there is less room, and not above or below.
const isSideways = (place, narrow) => !narrow && Math.abs(Math.sin(place.angle)) < 0.5;

function label(place, lines, narrow) {
  const sideways = isSideways(place, narrow);
  const right = Math.cos(place.angle) > 0;
  const above = Math.sin(place.angle) < 0;
  const x = sideways ? place.x + (right ? 24 : -24) : place.x;
  let y = sideways ? place.y - (lines.length - 1) * 7.5 + 4 : above ? place.y - 25 - (lines.length - 1) * 15 : place.y + 35;
  return svg("text", { class: "label", "text-anchor": sideways ? (right ? "start" : "end") : "middle" },
    lines.map((line, index) => svg("tspan", { x, y: y + index * 15, class: index ? "dim" : "name" }, line)));
}

const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function summary(peers) {
  const models = peer => (peer.models ?? []).map((model) => model.name);
  const lines = peers.slice(0, FULL).map((peer) => `${shortPeer(peer.peer)} ${peer.connected ? "connected" : "away"}${models(peer).length ? `, offers ${models(peer).slice(0, 3).join(", ")}` : ""}`);
  const rest = peers.length > FULL ? `. The other ${peers.length - FULL} are in the list` : "";
  return `This node and ${peers.length} ${peers.length === 1 ? "peer" : "peers"}. ${lines.join(". ")}${rest}`;
}

// Draw into `box`. busy: peer id -> number of live requests there. chosen: a peer id. choose: called with one.
export function draw(box, { peers, busy, chosen, choose }) {
  const width = Math.max(280, box.clientWidth);
  const narrow = width < 440;
  const shown = peers.slice(0, SHOWN);
  const few = shown.length < 3;
  const height = !shown.length ? 220 : few ? 180 : narrow ? 300 : 430;
  const size = shown.length > 40 ? 6 : 8;
  const middle = { x: width / 2, y: height / 2 };
  const spots = places(shown.length, width, height, narrow);
  const lines = [];
  const nodes = [];
  shown.forEach((peer, index) => {
    const spot = spots[index];
    const calls = busy.get(peer.peer) ?? 0;
    const away = !peer.connected;
    const length = Math.hypot(spot.x - middle.x, spot.y - middle.y);
    const ux = (spot.x - middle.x) / length;
    const uy = (spot.y - middle.y) / length;
    const kind = `${away ? "away" : ""} ${calls ? "busy" : ""} ${peer.peer === chosen ? "chosen" : ""}`;
    lines.push(svg("line", { class: `edge ${kind}`, x1: middle.x + ux * 32, y1: middle.y + uy * 32, x2: spot.x - ux * (size + 5), y2: spot.y - uy * (size + 5) }));
    if (!away && peer.rtt_s && shown.length <= FULL && length > 130) {
      lines.push(svg("text", { class: "rtt", "text-anchor": "middle", x: middle.x + ux * length * 0.54, y: middle.y + uy * length * 0.54 + 4 }, span(peer.rtt_s * 1000).replaceAll(" ", "\u2009")));
    }
    const names = [...new Set((peer.models ?? []).map((model) => String(model.name ?? model)))];
    const offer = names.length ? clipped(names[0].split("/").pop(), isSideways(spot, narrow) ? 15 : 20) + (names.length > 1 ? ` +${names.length - 1}` : "") : away ? "away" : "shares nothing";
    const text = words(peer, spot, offer, { number: shown.length, narrow, special: calls || peer.peer === chosen });
    const gpu = (peer.hardware?.gpus ?? []).length > 0;
    nodes.push(svg("g", { class: `node ${kind}`, onclick: () => choose(peer.peer) },
      svg("title", {}, `${peer.peer}\n${offer}`),
      svg("circle", { class: "reach", cx: spot.x, cy: spot.y, r: size * 2.5 }),
      gpu && svg("circle", { class: "gpu", cx: spot.x, cy: spot.y, r: size + 4 }),
      svg("circle", { class: "body", cx: spot.x, cy: spot.y, r: size }),
      text.length > 0 && label(spot, text, narrow)));
  });
  const me = svg("g", { class: `node me ${chosen === "me" ? "chosen" : ""}`, onclick: () => choose("me") },
    svg("circle", { class: "halo", cx: middle.x, cy: middle.y, r: 26 }),
    svg("circle", { class: "body", cx: middle.x, cy: middle.y, r: 17 }),
    svg("path", { class: "mark", d: `M${middle.x - 8} ${middle.y - 5}h6m4 0h6M${middle.x - 5} ${middle.y}h8m4 0h2M${middle.x - 7} ${middle.y + 5}h5m4 0h5` }));
  // Where peers will be: an empty swarm shows its room.
  const rings = shown.length ? [] : [0.44, 0.72, 1].map((reach) => svg("ellipse", { class: "ring", cx: middle.x, cy: middle.y, rx: Math.min(width / 2 - 8, 250) * reach, ry: (height / 2 - 4) * reach }));
  box.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": summary(peers) }, rings, lines, me, nodes,
    peers.length > SHOWN && svg("text", { class: "rtt", "text-anchor": "end", x: width - 4, y: height - 6 }, `${peers.length - SHOWN} more in the list`)));
}
