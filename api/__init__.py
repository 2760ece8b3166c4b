"""Shoal: one endpoint over everything you can ask, shared with the peers you trust.

>>> from shoal import generate_text
>>> generate_text("What is the opposite of hot?", max_tokens=8)        # doctest: +SKIP
'The opposite of hot is cold.'

This is the public face and nothing else: names are loaded on first use, so `import shoal` stays light.
"""
