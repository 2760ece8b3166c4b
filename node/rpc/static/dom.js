// Building the page. Whatever comes from the node goes in as text, never as markup: there is no other way in here.

const SVG = "http://www.w3.org/2000/svg";

// Names from elsewhere do not steer the direction of what stands around them (Unicode's embeddings and overrides).
const STEERING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const plain = (value) => String(value).replace(STEERING, "");

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : name === "value" ? String(value) : plain(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(plain(child)))));
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export function setText(node, text) {
  const value = plain(text);
  if (node.textContent !== value) node.textContent = value;
}

// Make the children of `parent` one per item, in order, keeping the elements (and the focus) of those that stay.
export function keyed(parent, items, key, render) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    const had = old.get(name);
    old.delete(name);
    const child = render(item, had);
    child.dataset.key = name;
    if (had && child !== had) {
      if (place === had) place = had.nextElementSibling;
      had.remove();
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of old.values()) child.remove();
}

export async function copy(text, button, done = "Copied") {
  const before = (button.dataset.says ??= button.textContent);  // and not "Copied", when it is pressed twice
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = done;
  } catch {
    const field = el("textarea", { readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    button.textContent = document.execCommand("copy") ? done : "Copy by hand";
    field.remove();
    button.focus();
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

// -- numbers and names for people

const NARROW = "\u202f";

export const count = (value) => Math.round(Number(value) || 0).toLocaleString("en").replaceAll(",", NARROW);

export function bytes(value) {
  let number = Number(value) || 0;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (number < 1024) return `${number < 10 && unit !== "B" ? number.toFixed(1) : Math.round(number)} ${unit}`;
    number /= 1024;
  }
  return `${number.toFixed(1)} TiB`;
}

export function span(ms) {
  if (ms < 1) return "< 1 ms";
  if (ms < 10) return `${Number(ms).toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

export function age(unixSeconds) {
  const s = Math.max(0, Date.now() / 1000 - unixSeconds);
  if (s < 5) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86_400)} d ago`;
}

// The first of a list, and how many more there are.
export const some = (list, most) => (list.length > most ? [...list.slice(0, most), `and ${count(list.length - most)} more`] : list);

// What occurs once each, with how often: "8 × H100".
export function counted(list) {
  const times = new Map();
  for (const entry of list) times.set(entry, (times.get(entry) ?? 0) + 1);
  return [...times].map(([entry, number]) => (number > 1 ? `${number} × ${entry}` : entry));
}

export const clock = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
export const shortPeer = (peer) => String(peer ?? "").slice(-6);
export const percent = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)}${NARROW}%` : "–");
