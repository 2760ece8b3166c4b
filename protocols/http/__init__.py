"""HTTP/1.1 on trio: a server loop, a pooled client and server-sent events, with every limit named."""
