"""An upstream whose streams all tick, and cost next to nothing: what is left of two cores is for what is measured.

A chat completion is answered with server-sent events, one each `--every` ms on every connection, `--events` in all. The
connections are spread over the interval in up to eight groups, as real streams are. One thread, one write an event.

    python -m benchmarks.ticker --every 10 --events 500      prints {"port": 40123}
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time

GROUPS = 8
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LIST = b'{"object":"list","data":[{"id":"tick","object":"model"}]}'
_MODELS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_LIST), _LIST)
_ABOUT = b'data: {"id":"chatcmpl-tick","object":"chat.completion.chunk","created":1700000000,"model":"tick","choices":'
_USAGE = b',"usage":{"prompt_tokens":4,"completion_tokens":%d,"total_tokens":%d}}\n\n'


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(count: int) -> list[bytes]:
    """The events of one stream, as chunks; the last one has the finish, the usage and the end."""
    words = [
        _chunk(_ABOUT + b'[{"index":0,"delta":{"content":"word%d "},"logprobs":null,"finish_reason":null}]}\n\n' % i)
        for i in range(count)
    ]
    last = _ABOUT + b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    last += _ABOUT + b"[]" + _USAGE % (count, count + 4) + b"data: [DONE]\n\n"
    words.append(_chunk(last) + b"0\r\n\r\n")
    words[0] = _HEAD + words[0]
    return words


def _whole_request(data: bytearray) -> bool:
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return False
    lower = bytes(data[:head]).lower()
    at = lower.find(b"content-length:")
    length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return len(data) >= head + 4 + length


def serve(listener: socket.socket, every_s: float, count: int) -> None:
    script = events(count)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    asked: dict[socket.socket, bytearray] = {}
    groups: list[dict[socket.socket, int]] = [{} for _ in range(GROUPS)]
    turn, due = 0, time.monotonic()
    while True:
        for key, _ in selector.select(max(0.0, due - time.monotonic())):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                asked[connection] = bytearray()
                selector.register(connection, selectors.EVENT_READ)
                continue
            try:
                data = sock.recv(65536)
            except OSError:
                data = b""
            if not data:
                selector.unregister(sock)
                sock.close()
                asked.pop(sock, None)
                for group in groups:
                    group.pop(sock, None)
                continue
            asked[sock] += data
            if _whole_request(asked[sock]):
                listing = asked[sock].startswith(b"GET ")
                asked[sock].clear()
                if listing:
                    sock.send(_MODELS)
                    continue
                min(groups, key=len)[sock] = 0
        now = time.monotonic()
        while due <= now:
            _tick(groups[turn], script)
            turn = (turn + 1) % GROUPS
            due += every_s / GROUPS


def _tick(group: dict[socket.socket, int], script: list[bytes]) -> None:
    for sock, at in list(group.items()):
        try:
            sock.send(script[at])
        except OSError:
            del group[sock]
            continue
        if at + 1 < len(script):
            group[sock] = at + 1
        else:
            del group[sock]


def main() -> None:
    parser = argparse.ArgumentParser(description="An upstream whose streams tick.")
    parser.add_argument("--every", type=float, default=10.0, help="ms between two events of a stream")
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        serve(listener, options.every / 1000, options.events)


if __name__ == "__main__":
    main()
