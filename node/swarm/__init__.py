"""The swarm as this node sees it: who the peers are, what they offer, and how to ask them."""
