"""What generates text: the contract (base), the registry, and one file per provider."""
