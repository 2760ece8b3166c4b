"""Providers that are other people's command-line tools, run as pure text generators.

One runner (`provider.py`, `process.py`, `home.py`) and one small file for each tool (`codex.py`, `claude.py`,
`gemini.py`, `copilot.py`, `copilot_sdk.py`), which says how the tool is started and what its output means.
"""
