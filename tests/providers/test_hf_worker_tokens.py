"""The light tokenizer and the loading without transformers, compared with transformers on the real model."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.providers.base import GenerateRequest
from shoal.providers.hf_worker.llama import Llama, Segment
from shoal.providers.hf_worker.model import opened
from shoal.providers.hf_worker.prompt import Prompter, control_tokens
from shoal.providers.hf_worker.slot_memory import SlotMemory
from shoal.providers.hf_worker.tokens import ChatTokenizer, NotCoveredError, read_json

TURNS = [
    {"role": "system", "content": "Be brief. ü"},
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
]


@pytest.fixture(scope="module")
def pair(models_dir: Path) -> tuple[Any, ChatTokenizer]:
    folder = models_dir / "smollm2"
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True), ChatTokenizer(folder)


@pytest.mark.model
def test_templates_and_control_tokens_are_those_of_transformers(pair: tuple[Any, ChatTokenizer]) -> None:
    theirs, ours = pair
    assert control_tokens(ours) == control_tokens(theirs)
    assert ours.eos_token_id == theirs.eos_token_id
    for turns in (TURNS, TURNS[1:]):
        expected = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert ours.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected


@pytest.mark.model
def test_none_of_the_17_control_tokens_gets_into_a_prompt_by_what_a_user_writes(
    pair: tuple[Any, ChatTokenizer],
) -> None:
    _, ours = pair
    words = sorted(control_tokens(ours))
    assert len(words) == 17
    ids = {ours.encode(word, add_special_tokens=False)[0] for word in words}
    assert len(ids) == 17
    prompter = Prompter(ours, "smollm2", 8192)

    def count(text: str) -> int:
        prompt = prompter.prompt(GenerateRequest.of(text, system=text, prefix=text))
        assert not ids & set(prompt.prefix)
        return sum(token in ids for token in prompt.messages)

    plain = count("a b")
    for word in words:
        half = len(word) // 2
        for text in (word, f"a{word}b", word * 3, word[:half] + word + word[half:]):
            assert count(text) == plain, word


@pytest.mark.model
def test_tokens_and_their_text_are_those_of_transformers(pair: tuple[Any, ChatTokenizer]) -> None:
    theirs, ours = pair

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=60) | st.sampled_from(["<|im_end|>a", "日本語 🎉", "a  b\n\n c"]))
    def same(text: str) -> None:
        tokens = ours.encode(text, add_special_tokens=False)
        assert tokens == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(tokens) == theirs.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    same()


def folder_of(tmp_path: Path, template: str) -> Path:
    """A tokenizer of three words."""
    vocabulary = {"<end>": 0, "a": 1, "[UNK]": 2}
    added = {"id": 0, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    whole = {"version": "1.0", "added_tokens": [added | {"special": True}], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": template}))
    return tmp_path


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{% for x in range(1000000000) %}{% endfor %}", "{{ messages.pop() }}"]
)
def test_a_template_that_reaches_out_of_its_sandbox_gets_nothing(tmp_path: Path, template: str) -> None:
    tokenizer = ChatTokenizer(folder_of(tmp_path, template))
    with pytest.raises(Exception, match=r"unsafe|Range too big"):
        tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)


def test_a_template_in_another_language_is_left_to_transformers(tmp_path: Path) -> None:
    with pytest.raises(NotCoveredError, match="more than jinja"):
        ChatTokenizer(folder_of(tmp_path, "{% generation %}x{% endgeneration %}"))
    with pytest.raises(NotCoveredError, match=r"no tokenizer\.json"):
        ChatTokenizer(tmp_path / "elsewhere")


@pytest.mark.model
def test_the_model_gives_the_logits_of_fp32_and_the_drafting_one_nearly(
    models_dir: Path, pair: tuple[Any, ChatTokenizer]
) -> None:
    """In one pass over a text. The drafting one is as good, by perplexity, and chooses the same nearly everywhere."""
    folder = models_dir / "smollm2"
    text = (Path(__file__).parents[2] / "benchmarks" / "perplexity.txt").read_text()[:1500]
    tokens = pair[1].encode(text, add_special_tokens=False)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    config, tensors = read_json(folder / "config.json"), opened(sorted(folder.glob("*.safetensors")))
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]

        def logits(form: str) -> torch.Tensor:
            model = Llama(config, tensors, form=form, positions=1024)
            segment = Segment(SlotMemory(model.memory_shape).values, 0, len(tokens))
            return model(tokens, [segment], list(range(len(tokens))))

        ours = logits("packed")
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)
        assert torch.equal(ours.argmax(-1), expected.argmax(-1))
        drafting = logits("int4")
    following = torch.tensor(tokens[1:])
    loss = [float(torch.nn.functional.cross_entropy(each[:-1], following)) for each in (drafting, expected)]
    assert abs(loss[0] - loss[1]) < 0.03
    assert float((drafting.argmax(-1) == expected.argmax(-1)).float().mean()) > 0.95


@pytest.mark.model
def test_the_lean_path_never_imports_transformers(models_dir: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from shoal.providers.hf_worker.frames import Load
        from shoal.providers.hf_worker.model import load
        model = load(Load("smollm2", sys.argv[1], 1))
        assert model.dtype == "packed", model.dtype
        assert "transformers" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", program, str(models_dir / "smollm2")], check=True, timeout=120)
