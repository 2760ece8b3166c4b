"""py-libp2p behind a narrow face: every import of libp2p in the project is in this folder."""
