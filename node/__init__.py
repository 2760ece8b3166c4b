"""What decides and serves: configuration, identity, the router, the swarm, the RPC, the commands."""
