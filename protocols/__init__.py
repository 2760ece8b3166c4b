"""What crosses a wire, knowing nothing of LLMs."""
