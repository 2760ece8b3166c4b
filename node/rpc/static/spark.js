// The last minute of a figure as a line beside it: one look a second, drawn only while there is something to see.

import { byId, svg } from "./dom.js";

const LOOKS = 60;
const FEWEST = 5;
const EVERY_MS = 1000;
const WIDTH = 60;
const HEIGHT = 32;

const seen = [];
let now = 0;

export function showRate(value) {
  now = Math.max(0, Number(value) || 0);
}

// The line through what was seen, from edge to edge, the highest at the top.
function path(values) {
  const top = Math.max(...values, 1);
  return values.map((value, index) => {
    const x = (index / (values.length - 1)) * WIDTH;
    const y = HEIGHT - 2 - (value / top) * (HEIGHT - 4);
    return `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }).join("");
}

function look() {
  if (document.body.dataset.state !== "live") return;
  seen.push(now);
  if (seen.length > LOOKS) seen.shift();
  const box = byId("f-rate-line");
  if (document.hidden) return;
  if (seen.length < FEWEST || !seen.some(Boolean)) {
    box.replaceChildren();
    return;
  }
  const line = path(seen);
  box.replaceChildren(
    svg("path", { class: "area", d: `${line}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }),
    svg("path", { class: "line", d: line }));
}

setInterval(look, EVERY_MS);
