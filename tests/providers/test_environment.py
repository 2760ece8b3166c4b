"""Environment variables: prefixes, booleans, choices."""

import pytest
from shoal.providers.environment import VariableError, boolean, choice, text


def test_ours_wins_over_the_old_prefix_and_both_over_the_vendors_name() -> None:
    environ = {"KEY": "vendor", "IPFS_ACCELERATE_PY_KEY": "old", "SHOAL_KEY": "ours"}
    assert text(environ, "KEY", vendor=True) == "ours"
    del environ["SHOAL_KEY"]
    assert text(environ, "KEY", vendor=True) == "old"
    del environ["IPFS_ACCELERATE_PY_KEY"]
    assert text(environ, "KEY", vendor=True) == "vendor"
    assert text(environ, "KEY") is None


@pytest.mark.parametrize("word", ["1", "true", "YES", " on "])
def test_four_words_are_true(word: str) -> None:
    assert boolean({"SHOAL_X": word}, "X") is True


@pytest.mark.parametrize("word", ["0", "False", "no", "off"])
def test_four_words_are_false(word: str) -> None:
    assert boolean({"IPFS_ACCELERATE_PY_X": word}, "X") is False


@pytest.mark.parametrize("word", ["2", "y", "enabled", "ja"])
def test_any_other_word_is_an_error_that_names_the_variable(word: str) -> None:
    with pytest.raises(VariableError, match="IPFS_ACCELERATE_PY_X"):
        boolean({"IPFS_ACCELERATE_PY_X": word}, "X")


def test_an_empty_variable_is_not_set() -> None:
    assert boolean({"SHOAL_X": " "}, "X") is None
    assert choice({"SHOAL_X": ""}, "X", ("a", "b")) is None


def test_a_choice_that_cannot_be_honoured_is_an_error_never_another_choice() -> None:
    assert choice({"SHOAL_X": "CID"}, "X", ("cid", "sha256")) == "cid"
    with pytest.raises(VariableError, match=r"SHOAL_X .* write cid or sha256"):
        choice({"SHOAL_X": "md5"}, "X", ("cid", "sha256"))
