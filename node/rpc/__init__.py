"""The local RPC: HTTP in, requests to the router, answers in the shapes that clients know."""
