// Talking to the node: the event feed, and requests, with the token of this tab where the node wants one.

const TOKEN = "shoal-token";
const SILENT_MS = 40_000;  // the node says something every 15 s; a line that was cut says nothing at all

let known = "";

export const token = {
  get() {
    try { return sessionStorage.getItem(TOKEN) ?? known; } catch { return known; }
  },
  set(value) {
    known = value;
    try { sessionStorage.setItem(TOKEN, value); } catch { /* a browser that keeps nothing: until the page is left */ }
  },
};

// No `cache` option: with it a browser sends Cache-Control: no-cache, which the node takes as the wish to ask anew.
export function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token.get()) headers.set("Authorization", `Bearer ${token.get()}`);
  return fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
}

// Server-sent events of a response: yields {event, data}. EventSource could send no token.
// alive: called with whatever comes, keep-alive comments too.
export async function* events(response, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    alive?.();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let event = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("event:")) event = line.slice(6).trim();
      }
      if (data.length) yield { event, data: data.join("\n") };
    }
  }
}

// Follow the feed for ever. on: section name -> function. state: told "live", "lost" or "token"; it may take its time.
export async function follow(on, state) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    const line = new AbortController();
    let silence;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => line.abort(), SILENT_MS);
    };
    try {
      alive();
      const response = await ask("/shoal/v1/events", { signal: line.signal });
      if (response.status === 401) {
        clearTimeout(silence);
        await state("token");
        wait = 250;
        continue;
      }
      if (!response.ok) throw new Error(String(response.status));
      state("live");
      wait = 250;
      for await (const { event, data } of events(response, alive)) on[event]?.(JSON.parse(data));
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof Error || error instanceof DOMException)) throw error;
    } finally {
      clearTimeout(silence);
      line.abort();
    }
    state("lost");
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
