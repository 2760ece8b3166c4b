"""What is remembered: canonical requests and their CIDs, signed records, the store and its tiers, IPFS."""
