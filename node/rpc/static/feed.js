// Talking to the node: the event feed, and requests, with the token of this tab where the node wants one.

const TOKEN = "shoal-token";

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value),
};

// No `cache` option: with it a browser sends Cache-Control: no-cache, which the node takes as the wish to ask anew.
export function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token.get()) headers.set("Authorization", `Bearer ${token.get()}`);
  return fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
}

// Server-sent events of a response: yields {event, data}. EventSource could send no token.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
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

// Follow the feed for ever. on: section name -> function. state: told "live", "lost" or "token".
export async function follow(on, state) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await ask("/shoal/v1/events");
      if (response.status === 401) {
        await state("token");
        wait = 250;
        continue;
      }
      if (!response.ok) throw new Error(String(response.status));
      state("live");
      wait = 250;
      for await (const { event, data } of events(response)) on[event]?.(JSON.parse(data));
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof Error)) throw error;
    }
    state("lost");
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
