"""The editor's session: exact undo, a cache that is cut and not rebuilt, and nothing lost."""

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from esogen.checkpoint.folder import Checkpoint
from esogen.editor import work_file
from esogen.editor.commands import Commands, rendered, tree
from esogen.editor.plain import edit
from esogen.editor.session import Session
from esogen.editor.state import State
from esogen.errors import EsogenError, UsageError
from esogen.generate.denoise import Step
from esogen.generate.template import BLANK
from esogen.language_model import LanguageModel
from esogen.likelihood import token_log_probs
from esogen.model.network import with_bos
from tests.runs import behind_bos

TEMPLATE = "Once upon a [MASK:4] there was [MASK:3] and a [MASK:5] the end."


@pytest.fixture
def lm(tiny_checkpoint: Checkpoint, request: pytest.FixtureRequest) -> LanguageModel:
    """The tiny model; with `bos` as parameter, one whose texts begin from end-of-text."""
    model = behind_bos(tiny_checkpoint) if getattr(request, "param", "") else tiny_checkpoint
    return LanguageModel(model, torch.device("cpu"))


with_and_without_bos = pytest.mark.parametrize("lm", ["", "bos"], indirect=True)


@pytest.fixture
def session(lm: LanguageModel) -> Session:
    return begun(lm)


def begun(lm: LanguageModel, template: str = TEMPLATE, alpha_0: float = 0.5) -> Session:
    settings = lm.infill_settings(lm.settings(seed=1, steps=3, alpha_0=alpha_0), n=2)
    session = Session(lm, settings)
    drain(session.open(lm.read_template(template)))
    return session


def drain(steps: Iterator[Step]) -> int:
    return sum(1 for _ in steps)


def computed(session: Session, steps: Iterator[Step]) -> int:
    before = session.cache.computed
    drain(steps)
    return session.cache.computed - before


def held(session: Session) -> list[torch.Tensor]:
    """The bytes of the cache, as far as it stands."""
    length = int(session.cache.kv.lengths_B[0])
    layers = range(session.engine.network.config.n_blocks)
    return [session.cache.kv.read(layer, length).clone() for layer in layers]


def same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def holds_what_it_says(session: Session) -> None:
    """The cache is that of the current state, computed from nothing."""
    state, network = session.current, session.engine.network
    order = torch.from_numpy(state.order[: state.clean])[None]
    tokens = torch.from_numpy(state.tokens_L)[None].gather(1, order)
    fresh = type(session.cache.kv)(network.config, 1, 64)
    tokens, order = with_bos(network.config, tokens, order)
    with torch.inference_mode():
        network.hidden(tokens, order, fresh.attend(order.shape[1]))
    assert int(session.cache.kv.lengths_B[0]) == order.shape[1]
    layers = range(network.config.n_blocks)
    expected = [fresh.read(layer, order.shape[1]) for layer in layers]
    for found, right in zip(held(session), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


def first_changed(before: State, after: State) -> int:
    """The sorted index of the first token that a change could not keep."""
    decided = set(after.decided)
    return next(i for i, p in enumerate(before.order.tolist()) if p in decided)


def test_a_filled_text_is_the_first_candidate_of_infill(lm: LanguageModel) -> None:
    session = begun(lm, "The [MASK:1-3] sat on [MASK:2].")
    settings = session.settings
    tokens = lm.read_template("The [MASK:1-3] sat on [MASK:2].")
    (filled,) = lm.infilling(settings).carry_out([tokens], 8)
    assert session.current.tokens_L.tolist() == list(filled[0].tokens)
    np.testing.assert_allclose(session.current.log_probs_L, filled[0].log_probs, atol=1e-4)


def test_filling_computes_each_given_token_once_and_each_decided_one_twice_but_the_last(
    session: Session,
) -> None:
    state = session.current
    blanks = len(state.decided)
    given = len(state.tokens_L) - blanks
    last = len(state.order) - state.clean
    assert session.cache.computed == given + 2 * blanks - last


@with_and_without_bos
@pytest.mark.parametrize("number", [1, 2, None])
def test_a_reroll_cuts_the_tail_and_computes_only_kept_tokens_behind_the_cut(
    session: Session, number: int | None
) -> None:
    before = session.current
    cost = computed(session, session.reroll(number))
    after = session.current
    blanks = len(after.decided)
    cut = min(first_changed(before, after), before.clean)
    kept_behind = len(after.order) - blanks - cut
    assert after.fork == cut
    assert cost == kept_behind + 2 * blanks - (len(after.order) - after.clean)
    kept = np.setdiff1d(np.arange(len(before.tokens_L)), after.decided)
    assert (before.tokens_L[kept] == after.tokens_L[kept]).all()
    assert BLANK not in after.tokens_L
    holds_what_it_says(session)


@with_and_without_bos
def test_undo_returns_to_the_same_state_to_the_bit_and_computes_nothing(
    session: Session, lm: LanguageModel
) -> None:
    seen = [(session.current.number, held(session))]
    commands = Commands(session, lm.read_template, print)
    for line in ("reroll 2", "branch 1 1", "length 1 6", "blank there was", "reroll", "next"):
        drain(commands.run(line))
        seen.append((session.current.number, held(session)))
        holds_what_it_says(session)
    cost = session.cache.computed
    for number, bits in [*reversed(seen), *seen, seen[2], seen[5], seen[0], seen[4]]:
        session.go_to(number)
        assert same_bits(held(session), bits)
    assert session.cache.computed == cost


def test_what_is_decided_after_an_undo_does_not_depend_on_what_was_undone(
    lm: LanguageModel,
) -> None:
    straight, winding = begun(lm), begun(lm)
    drain(winding.reroll())
    winding.undo()
    drain(winding.branch(winding.current.blank(3)[0]))
    winding.undo()
    winding.sample = straight.sample
    drain(straight.reroll(1))
    drain(winding.reroll(1))
    assert straight.current.tokens_L.tolist() == winding.current.tokens_L.tolist()
    assert straight.current.log_probs_L.tolist() == winding.current.log_probs_L.tolist()
    assert same_bits(held(straight), held(winding))


def test_redo_returns_to_what_was_undone(session: Session) -> None:
    first = session.current.number
    drain(session.reroll(1))
    drain(session.reroll(2))
    last, bits = session.current.number, held(session)
    session.undo()
    session.undo()
    assert session.current.number == first
    session.redo()
    session.redo()
    assert session.current.number == last
    assert same_bits(held(session), bits)
    with pytest.raises(UsageError, match="nothing to redo"):
        session.redo()


def test_a_branch_keeps_everything_decided_before_the_word(session: Session) -> None:
    before = session.current
    position = session.current.blank(2)[1]
    index = before.order.tolist().index(position)
    cost = computed(session, session.branch(position))
    after = session.current
    assert after.order[:index].tolist() == before.order[:index].tolist()
    assert position in after.decided
    assert (after.tokens_L[before.order[:index]] == before.tokens_L[before.order[:index]]).all()
    assert after.fork == min(index, before.clean)
    blanks = len(after.decided)
    assert cost == index - after.fork + 2 * blanks - (len(after.order) - after.clean)


def test_recorded_log_probs_are_exact_where_one_token_was_decided_at_a_time(
    lm: LanguageModel,
) -> None:
    session = begun(lm, alpha_0=0.0)
    drain(session.reroll(2))
    drain(session.resize(1, 2))
    state = session.current
    order = torch.from_numpy(state.order)[None]
    text = torch.from_numpy(state.tokens_L)[None]
    found = token_log_probs(lm.checkpoint.network, text, order)[0].numpy()
    decided = len(state.decided)
    recorded = state.log_probs_L[state.order[-decided:]]
    np.testing.assert_allclose(recorded, found[-decided:], atol=1e-4)


def test_locked_words_stay_through_rerolls_and_branches(session: Session) -> None:
    locked = [*session.current.blank(1)][:2]
    session.lock(locked, locked=True)
    tokens = session.current.tokens_L[locked].tolist()
    drain(session.reroll())
    drain(session.reroll(1))
    drain(session.branch(session.current.blank(3)[0]))
    assert session.current.tokens_L[locked].tolist() == tokens
    session.lock(range(len(session.current.tokens_L)), locked=True)
    with pytest.raises(UsageError, match="everything there is locked"):
        session.reroll()
    session.undo()
    session.lock(locked, locked=False)
    drain(session.reroll(1))
    assert set(locked) <= set(session.current.decided)


def test_candidates_are_siblings_that_are_made_when_they_are_asked_for(session: Session) -> None:
    drain(session.reroll(2))
    first = session.current.tokens_L.tolist()
    with pytest.raises(UsageError, match="first candidate"):
        session.previous()
    drain(session.next())
    second = session.current.tokens_L.tolist()
    assert first != second
    session.previous()
    assert session.current.tokens_L.tolist() == first
    cost = computed(session, session.next())
    assert (cost, session.current.tokens_L.tolist()) == (0, second)


def test_where_nothing_was_decided_there_are_no_candidates(session: Session) -> None:
    session.lock(session.current.blank(1), locked=True)
    for command in (session.next, session.previous):
        with pytest.raises(UsageError, match="nothing was decided here"):
            command()


def test_a_given_word_becomes_a_blank_and_other_blanks_keep_their_words(session: Session) -> None:
    tokenizer = session.engine.tokenizer
    before = session.current.layout.fills(session.current.tokens_L.tolist(), tokenizer)
    drain(session.blank_out("there was"))
    state = session.current
    fills = state.layout.fills(state.tokens_L.tolist(), tokenizer)
    assert (fills[0], fills[2:]) == (before[0], before[1:])
    assert state.layout.template.texts[:3] == ("Once upon a ", " ", " ")
    with pytest.raises(UsageError, match="not among the given words"):
        session.blank_out("elephant")


def test_another_length_moves_what_stands_behind_and_keeps_its_words(session: Session) -> None:
    tokenizer = session.engine.tokenizer
    before = session.current.layout.fills(session.current.tokens_L.tolist(), tokenizer)
    drain(session.resize(2, 7))
    state = session.current
    fills = state.layout.fills(state.tokens_L.tolist(), tokenizer)
    assert state.layout.lengths == (4, 7, 5)
    assert (fills[0], fills[2]) == (before[0], before[2])
    holds_what_it_says(session)
    with pytest.raises(UsageError, match="there is room for"):
        session.resize(1, 60)
    with pytest.raises(UsageError, match="there is no blank 9; there are 1 to 3"):
        session.resize(9, 1)


def test_a_step_that_is_interrupted_leaves_the_state_as_it_was(session: Session) -> None:
    number, bits = session.current.number, held(session)
    steps = session.reroll()
    next(steps)
    next(steps)
    assert isinstance(steps, Generator)
    steps.close()
    assert session.current.number == number
    assert same_bits(held(session), bits)
    drain(session.reroll())
    holds_what_it_says(session)


def test_a_state_whose_tail_was_not_kept_is_computed_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esogen.editor.text_cache.LAID_ASIDE", 0)
    before = session.current
    drain(session.reroll())
    fork = session.current.fork
    cost = session.cache.computed
    session.undo()
    assert session.cache.computed - cost == before.clean - fork
    holds_what_it_says(session)


# The working file


@with_and_without_bos
def test_a_session_that_was_written_is_resumed_with_all_its_states(
    session: Session, lm: LanguageModel, tmp_path: Path
) -> None:
    drain(session.reroll(2))
    session.lock([session.current.blank(1)[0]], locked=True)
    drain(session.blank_out("there was"))
    session.undo()
    path = tmp_path / "deep" / "work.json"
    work_file.write(path, session, "tiny")
    again = Session(lm, session.settings)
    work_file.resume(work_file.read(path, "tiny"), again, path)
    assert again.current.number == session.current.number
    for one, other in zip(session.tree.states, again.tree.states, strict=True):
        assert rendered(one, session) == rendered(other, again)
        assert one.log_probs_L.tolist() == other.log_probs_L.tolist()
    holds_what_it_says(again)
    assert tree(session) == tree(again)
    drain(session.reroll(1))
    drain(again.reroll(1))
    assert session.current.tokens_L.tolist() == again.current.tokens_L.tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no working file"),
        ("[]", "is no working file"),
        ('{"format": 9, "model": "tiny"}', "has the format 9"),
        ('{"format": 1, "model": "other"}', "was made with the model other"),
        (None, "there is no working file"),
    ],
)
def test_a_file_that_cannot_be_resumed_is_told(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "work.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EsogenError, match=said):
        work_file.read(path, "tiny")


# Commands as words


def plain(session: Session, lm: LanguageModel, *lines: str) -> tuple[str | None, list[str]]:
    said: list[str] = []
    saved: list[int] = []
    commands = Commands(session, lm.read_template, said.append)
    text, _ = edit(commands, lines, lambda: saved.append(1))
    return text, said


def test_a_script_of_commands_edits_and_accepts(
    session: Session, lm: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "out.txt"
    text, said = plain(
        session, lm, "reroll 1", "lock 1 1", "next", "undo", "blank upon a", "length 1 2",
        "alpha-0 0", "temperature 0.5", "steps 4", "reroll", "branch 2 1", "redo", "states",
        f"write {path}", "accept", "reroll",
    )  # fmt: skip
    assert text is not None
    assert text == session.current.text(session.engine.tokenizer)
    assert path.read_text() == text + "\n"
    assert text.startswith("Once ")
    assert text.endswith(" the end.")
    assert any("tokens computed" in line for line in said)
    assert session.current.knobs.draw.temperature == 0.5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dance", "there is no command 'dance'"),
        ("reroll 9", "there is no blank 9"),
        ("reroll one", "'one' is not a blank; give a whole number"),
        ("lock 1 99", "blank 1 has"),
        ("lock", "give the number of a blank"),
        ("alpha-0 3", "alpha_0 is 3.0; it must be in [0, 1]"),
        ("temperature x", "temperature is 'x'; it must be a number"),
        ("steps 0", "steps is 0"),
        ("goto 99", "there is no state 99"),
        ("write /nowhere/at/all", "cannot be written"),
        ("template none", "has no blank"),
        ("blank elephant", "not among the given words"),
    ],
)
def test_a_wrong_command_is_told_and_changes_nothing(
    session: Session, lm: LanguageModel, line: str, said: str
) -> None:
    number, bits = session.current.number, held(session)
    _, lines = plain(session, lm, line)
    assert any(said in each for each in lines)
    assert session.current.number == number
    assert same_bits(held(session), bits)


@pytest.mark.parametrize("word", ["accept", "write text.txt"])
def test_a_text_with_blanks_left_is_neither_accepted_nor_written(
    session: Session,
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = plain(session, lm, "undo", word)
    assert text is None
    assert any("there are blanks to be filled yet" in line for line in said)
    assert not list(tmp_path.iterdir())
    text, _ = plain(session, lm, "redo", "accept")
    assert text == session.current.text(session.engine.tokenizer)


def test_another_template_may_be_taken_up_and_undone(session: Session, lm: LanguageModel) -> None:
    first = session.current.number
    plain(session, lm, "template A [MASK:2] cat.")
    assert session.current.text(session.engine.tokenizer).endswith(" cat.")
    holds_what_it_says(session)
    session.undo()
    assert session.current.number == first
    holds_what_it_says(session)


# Words that are fixed inside a blank


def with_fixed(lm: LanguageModel, *words: str) -> Session:
    settings = lm.infill_settings(lm.settings(seed=1, steps=3, alpha_0=0.5), n=2)
    session = Session(lm, settings)
    drain(session.open(lm.read_template("The [MASK:4] sat on [MASK:2].", fix=words)))
    return session


def fixed(session: Session, number: int) -> dict[int, int]:
    """Tokens of a blank that are given, by their place in it."""
    state = session.current
    return {
        place: int(state.tokens_L[position])
        for place, position in enumerate(state.blank(number))
        if state.layout.ids_L[position] != BLANK
    }


def test_fixed_words_stay_whatever_is_changed_around_them(lm: LanguageModel) -> None:
    start = begun(lm, "The [MASK:4] sat on [MASK:2].").current.blank(1)[0]
    session = with_fixed(lm, f"{start + 2}:the")
    before = fixed(session, 1)
    assert [*before] == [2]
    commands = Commands(session, lm.read_template, print)
    for line in ("reroll", "reroll 1", "length 1 6", "length 2 4", "reroll", "length 1 3"):
        drain(commands.run(line))
        assert fixed(session, 1) == before, line
        assert BLANK not in session.current.tokens_L
        holds_what_it_says(session)
    drain(commands.run("blank sat"))
    assert fixed(session, 1) == before
    assert fixed(session, 2) == {}
    drain(commands.run("reroll"))
    assert fixed(session, 1) == before


def test_a_blank_does_not_become_too_short_for_a_fixed_word(lm: LanguageModel) -> None:
    start = begun(lm, "The [MASK:4] sat on [MASK:2].").current.blank(1)[0]
    session = with_fixed(lm, f"{start + 2}:the")
    with pytest.raises(UsageError, match="token 3 of the blank is a fixed word"):
        session.resize(1, 2)


def test_where_all_is_fixed_nothing_is_decided_again(lm: LanguageModel) -> None:
    start = begun(lm, "The [MASK:4] sat on [MASK:2].").current.blank(2)[0]
    session = with_fixed(lm, f"{start}:the", f"{start + 1}:the")
    with pytest.raises(UsageError, match="locked or fixed"):
        session.reroll(2)


# What came up in use


def test_an_interrupted_candidate_leaves_the_one_that_was_there(session: Session) -> None:
    drain(session.reroll(1))
    here, text = session.current.number, session.current.tokens_L.copy()
    steps = session.next()
    next(steps)
    assert isinstance(steps, Generator)
    steps.close()
    assert session.current.number == here
    assert (session.current.tokens_L == text).all()
    holds_what_it_says(session)


def test_a_branch_where_nothing_is_decided_is_told(session: Session) -> None:
    session.go_to(0)
    with pytest.raises(UsageError, match="nothing is decided there yet"):
        session.branch(session.current.blank(1)[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("write it's.txt", "write takes the name of one file"),
        ("write a b", "write takes the name of one file"),
        (f"goto {'9' * 5000}", "give a whole number"),
        ("length 1 1000000000", "give a whole number"),
        ("length 1 999999999", "there is room for"),
    ],
)
def test_what_no_command_can_take_is_told(
    session: Session, lm: LanguageModel, line: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Commands(session, lm.read_template, print).run(line)


def test_a_long_history_is_shown_whole(session: Session) -> None:
    position = session.current.blank(1)[0]
    for turn in range(1200):
        session.lock([position], locked=turn % 2 == 0)
    lines = tree(session).splitlines()
    assert len(lines) == len(session.tree.states)
    assert lines[-1].startswith("> 1201 " + "  " * 1201)


def test_a_resumed_session_goes_on_with_its_own_seed(
    session: Session, lm: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "work.json"
    work_file.write(path, session, "tiny")
    other = Session(lm, lm.infill_settings(lm.settings(seed=99), n=2, orders=3))
    work_file.resume(work_file.read(path, "tiny"), other, path)
    assert (other.settings.seed, other.settings.order.seed) == (1, 1)
    drain(session.reroll(1))
    drain(other.reroll(1))
    assert (session.current.tokens_L == other.current.tokens_L).all()
    with pytest.raises(EsogenError, match="goes on with --seed 1; leave out --seed 99"):
        work_file.read(path, "tiny", 99)
