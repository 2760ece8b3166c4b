"""A package that brings two providers: `parrot`, the shortest possible, and `echo`, with settings and events."""
