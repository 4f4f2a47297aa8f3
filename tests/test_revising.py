"""Drafts: the least likely tokens, and only those, become blanks, and the rest stays as it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esogen.checkpoint.folder import Checkpoint
from esogen.errors import UsageError
from esogen.generate.template import BLANK, Layout, Tokens
from esogen.ranking.revising import mean_log_probs, revise

TEXT = "Once upon a time there was a cat. “Zq 🙂 x!”\n"


def revision(model: Checkpoint, text: str, share: float, *keep: str) -> Tokens:
    return revise(text, model.network, model.tokenizer, share=share, seed=1, keep=keep)


def layout_of(tokens: Tokens) -> Layout:
    return Layout.of(tokens, [blank.most for blank in tokens.template.blanks])


@given(
    st.text(st.sampled_from("ab ñ🙂\n."), min_size=2, max_size=20),
    st.sampled_from([0.1, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=40)
def test_the_draft_put_back_into_its_blanks_is_the_draft(
    tiny_checkpoint: Checkpoint, text: str, share: float
) -> None:
    ids = tiny_checkpoint.tokenizer.encode(text)
    if not round(share * len(ids)):
        return
    layout = layout_of(revision(tiny_checkpoint, text, share))
    assert layout.text(layout.fills(ids, tiny_checkpoint.tokenizer)) == text
    assert len(layout.ids_L) == len(ids)
    assert all(a in (b, BLANK) for a, b in zip(layout.ids_L.tolist(), ids, strict=True))


def test_the_least_likely_share_becomes_blanks(tiny_checkpoint: Checkpoint) -> None:
    text = "Once upon a time there was a cat."
    ids = tiny_checkpoint.tokenizer.encode(text)
    blank_L = layout_of(revision(tiny_checkpoint, text, 0.3)).ids_L == BLANK
    likely_L = mean_log_probs(tiny_checkpoint.network, ids, 1)
    assert blank_L.sum() == round(0.3 * len(ids))
    assert likely_L[blank_L].max() < likely_L[~blank_L].min()


def test_kept_parts_are_no_blanks_whatever_the_share(tiny_checkpoint: Checkpoint) -> None:
    tokens = revision(tiny_checkpoint, TEXT, 1.0, "a time", "🙂")
    given_text = "".join(tokens.template.texts)
    assert "a time" in given_text
    assert "🙂" in given_text


def test_half_a_character_is_not_kept_alone(tiny_checkpoint: Checkpoint) -> None:
    for share in np.linspace(0.1, 1.0, 10):
        tokens = revision(tiny_checkpoint, "a 🙂🙂 b 🙂", float(share))
        assert all("\ufffd" not in text for text in tokens.template.texts)


@pytest.mark.parametrize("text", ["", "cat " * 65])
def test_a_draft_must_fit_the_model(tiny_checkpoint: Checkpoint, text: str) -> None:
    with pytest.raises(UsageError, match=r"the draft has \d+ tokens; this model takes 1 to 64"):
        revision(tiny_checkpoint, text, 0.3)
