"""HTTP/1.1 on trio: a server loop, a pooled client and server-sent events, with every limit named.

Pure parts (bytes in, events out): `request`, `chunked`, `response`, `sse`. Around them: `connection` and `server`,
`client`, and `wire`, the byte stream under both. Nothing here knows what it is used for.
"""
