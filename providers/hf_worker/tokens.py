"""A model's tokenizer and chat template, by the tokenizers library and jinja alone.

Importing transformers for this would take longer than loading the model. What it does with `tokenizer.json`,
`tokenizer_config.json`, `chat_template.jinja` and `generation_config.json` is done here, for tokenizers that are whole
in `tokenizer.json`; the tests compare. A template runs in jinja's sandbox, as it does there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from .chat_template import AddedToken, compiled
from .chat_template import NotCoveredError as NotCoveredError  # whoever asks for a tokenizer catches it from here


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one when the file is not there."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


class ChatTokenizer:
    """What `prompt.Prompter` and the worker need of a tokenizer. Raises NotCoveredError for what is not covered."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise NotCoveredError("there is no tokenizer.json")
        config = read_json(folder / "tokenizer_config.json")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.chat_template = _template_of(folder, config)
        self._template = compiled(self.chat_template)
        self.added_tokens_decoder = {
            at: AddedToken(token.content, token.special)
            for at, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._named: dict[str, str] = {}
        for key, value in config.items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                self._named[key] = content
        others = [each.get("content") if isinstance(each, dict) else each for each in _listed(config)]
        self.all_special_tokens = [*self._named.values(), *(each for each in others if isinstance(each, str))]
        unknown = [word for word in self.all_special_tokens if self._tokenizer.token_to_id(word) is None]
        if unknown:
            raise NotCoveredError("tokenizer_config.json names control tokens that tokenizer.json lacks")
        # transformers marks these as control tokens even where tokenizer.json does not.
        marked = {token.content for token in self.added_tokens_decoder.values() if token.special}
        missing = [word for word in self.all_special_tokens if word not in marked]
        self._tokenizer.add_special_tokens(missing)
        end = self._named.get("eos_token")
        self.eos_token_id = self._tokenizer.token_to_id(end) if end else None

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without the control tokens."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def apply_chat_template(self, turns: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._named)


def _template_of(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise NotCoveredError("it has several chat templates")
    return template or ""


def _listed(config: dict[str, Any]) -> list[Any]:
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(listed, dict):
        return list(listed.values())
    return list(listed) if isinstance(listed, list) else []
