"""The peer-to-peer transport: a libp2p host with its faults mended, and bitswap over a block store it is given.

Every `import libp2p` and `import multiaddr` of the project is in this folder. Importing `host` or `bitswap` costs about
a second and 60 MiB, so commands that start no node must not import them; `errors` and `bitswap_message` are free.
"""
