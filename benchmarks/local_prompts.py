"""What the local model and those beside it are asked. Imports nothing heavy: what is measured may start with it."""

from __future__ import annotations

from pathlib import Path

STORY = "Write a long story about a dragon."
JAPAN = "What is the capital of Japan?"
TOKENS = 48
LONG_PROMPT = "word " * 1200
ROUNDS = 3
STREAMS = (1, 4, 16)
PREFILL = 512
ANSWER_TOKENS = 24
TEXT = Path(__file__).parent / "perplexity.txt"
PROMPTS = """\
What is the capital of Japan?|What is the opposite of hot?|What colour is the sky?|How many days are in a week?
What is 2+2?|Name three fruits.|What is water made of?|Describe the ocean.|Explain gravity to a child.
Write a long story about a dragon.|Name three colors and describe each.|Write two sentences about rivers.
What do bees make?|Who wrote Romeo and Juliet?|What is a noun?|Give me a recipe for pancakes.|What is a computer?
Write a short poem about the moon.|How do plants grow?|What is the largest ocean?|Why do we sleep?
List five animals.|What is the boiling point of water?|Tell me a fact about cats.|How does a bicycle work?
What is a prime number?|Write a polite email to a colleague.|What is photosynthesis?|Name a famous painter.
Describe a sunny day.|What is the purpose of a heart?|How do I make tea?|What is music?|What does a doctor do?
Translate "good morning" into Spanish.|What is the first month of the year?|Why is the sea salty?
What is a triangle?|Give advice to a new student.|Write a haiku about snow.|What is democracy?|What is snow?
How many legs does a spider have?|What is a library for?|Describe your favourite season.|What is a planet?
Write one sentence about friendship.|What do cows eat?|What is an algorithm?|How do birds fly?"""
"""Fifty questions, 24 tokens of each answer are compared."""


def questions() -> list[str]:
    found = [each for line in PROMPTS.splitlines() for each in line.split("|")]
    assert len(found) == 50
    return found
