"""The live view on real terminals: what a person sees while a text is made, and afterwards."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pexpect
import pyte
import pytest
import torch
from torch import Tensor

from esogen.checkpoint.folder import Checkpoint
from esogen.generate.denoise import Step
from esogen.language_model import LanguageModel
from esogen.sampling import Batch
from esogen.trace import UNDECIDED
from esogen.view import theme
from esogen.view.canvas import roles
from esogen.view.live import RATE, SHARE, LiveView, Look, Pace, watch
from esogen.view.screen import Screen
from esogen.view.theme import THEMES, UNPAINTED

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
LONG = ("--no-kv-cache", "--seed", "1", "--alpha-0", "0.6", "Once upon a time")
"""On the built-in model: a few seconds, in both phases."""


class Terminal:
    """A pseudo-terminal and what a person would see on it."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.ours, self.theirs = pty.openpty()
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.sent = b""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        self.screen.resize(rows, columns)

    def read(self) -> str:
        """Take in what was sent until now; returns the rows of the screen."""
        while select.select([self.ours], [], [], 0.01)[0]:
            data = os.read(self.ours, 65536)
            self.sent += data
            self._stream.feed(data)
        return "\n".join(line.rstrip() for line in self.screen.display)

    def close(self) -> None:
        os.close(self.theirs)
        os.close(self.ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


@pytest.fixture
def model(tiny_checkpoint: Checkpoint) -> LanguageModel:
    return LanguageModel(tiny_checkpoint, torch.device("cpu"))


def batch_of(model: LanguageModel, n: int = 1, *, raw: bool = True, alpha_0: float = 0.5) -> Batch:
    settings = model.settings(length=48, steps=12, alpha_0=alpha_0, seed=1, raw=raw)
    return next(model.batches("The cat", settings, n=n))


def view_of(batch: Batch, model: LanguageModel, screen: Screen, texts: int = 1) -> LiveView:
    decode = model.checkpoint.tokenizer.decode
    return LiveView(batch, decode, screen, Look(THEMES["default"]), texts)


# What is seen while it runs


def test_every_frame_tells_how_far_the_run_is(model: LanguageModel, terminal: Terminal) -> None:
    batch, screen = batch_of(model), Screen(terminal.theirs)
    view, calls = view_of(batch, model, screen), batch.plan.nfe
    view.draw()
    seen = terminal.read()
    given = int(batch.plan.given)
    assert "The cat" in seen
    assert f"diffusion · step 0 of {calls} · {48 - given} masks left" in seen
    for step in batch.steps():
        view.take(step)
        view.draw()
        seen = terminal.read()
        left = 48 - int(batch.plan.ends_S[step.index])
        phase = "sequential" if step.sequential else "diffusion"
        masks = f"{left} mask{'' if left == 1 else 's'} left"
        assert f"{phase} · step {step.index + 1} of {calls} · {masks}" in seen
        assert f"NFE {step.index + 1}" in seen
        assert re.search(r"\d+ tokens/s", seen)
        assert ("▓" in seen) == (step.sequential and left > 0)
        assert "◆" in seen
    assert not {*"░▓"} & {*seen}
    screen.leave()
    assert terminal.read()
    assert not terminal.screen.cursor.hidden


def test_drafts_are_shown_dim_and_settle_or_fall_back(
    model: LanguageModel, terminal: Terminal
) -> None:
    settings = model.settings(length=48, draft=5, alpha_0=0.5, seed=1, raw=True)
    batch = next(model.batches("The cat", settings))
    view = view_of(batch, model, Screen(terminal.theirs))
    before, settled, fell = np.full(48, UNDECIDED), 0, 0
    for step in batch.steps():
        view.take(step)
        (frame,) = view.frames()
        assert frame.drafts_L is not None
        drafted_L = frame.drafts_L != UNDECIDED
        assert (frame.tokens_L[drafted_L] == UNDECIDED).all()
        shown = np.array(roles(frame, "certainty"))
        assert set(shown[drafted_L]) <= {theme.DRAFT}
        assert theme.DRAFT not in shown[~drafted_L]
        stood_L = (before != UNDECIDED) & (before == frame.tokens_L)
        settled += int(stood_L.sum())
        fell += int(((before != UNDECIDED) & ~stood_L & ~drafted_L).sum())
        before = frame.drafts_L
    assert settled > 5
    assert fell > 5
    assert frame.masks_left == 0
    assert frame.steps == frame.step + 1


def test_the_view_has_seen_what_the_trace_recorded(
    model: LanguageModel, terminal: Terminal
) -> None:
    batch = batch_of(model, n=3)
    view = view_of(batch, model, Screen(terminal.theirs), texts=3)
    for step in batch.steps():
        view.take(step)
    trace = batch.trace()
    for row, frame in enumerate(view.frames()):
        decided = frame.tokens_L != UNDECIDED
        assert (frame.tokens_L == trace.tokens_BL[row]).all()
        assert (frame.steps_L == trace.steps_BL[row]).all()
        assert np.allclose(frame.certainty_L, np.exp(trace.log_probs_BL[row]))
        assert decided.all()


def test_a_step_is_not_read_back_before_a_frame_is_drawn(
    model: LanguageModel, terminal: Terminal
) -> None:
    view = view_of(batch_of(model), model, Screen(terminal.theirs))
    nothing = cast(Tensor, object())  # whoever touches it is told
    view.take(Step(0, False, np.arange(1), nothing, nothing, nothing))
    with pytest.raises(AttributeError):
        view.draw()


@pytest.mark.parametrize(
    ("columns", "rows", "told"),
    [
        (20, 5, "diffusion · 0/31"),
        (7, 2, "0/31"),
        (1, 1, ""),
        (40, 10, "diffusion · step 0 of 31"),
        (132, 50, "diffusion · step 0 of 31 · 46 masks left · NFE 0"),
    ],
)
def test_a_resize_is_followed_in_both_directions(
    model: LanguageModel, terminal: Terminal, columns: int, rows: int, told: str
) -> None:
    screen = Screen(terminal.theirs)
    view = view_of(batch_of(model), model, screen)
    for size in ((80, 24), (columns, rows), (80, 24)):
        terminal.resize(*size)
        view.draw()
        seen = terminal.read()
        assert told in seen or size == (80, 24)
        assert seen.count("diffusion") <= 1
    assert "The cat" in seen
    assert seen.count("diffusion") == 1
    screen.leave()


def test_texts_of_a_batch_are_named_and_counted(model: LanguageModel, terminal: Terminal) -> None:
    settings = model.settings(length=24, steps=6, seed=1, raw=True)
    *_, last = model.batches("The cat", settings, n=4, batch_size=2)
    screen = Screen(terminal.theirs)
    view_of(last, model, screen, texts=4).draw()
    seen = terminal.read()
    assert re.search(r"text 3 +│ text 4", seen)
    assert "text 3-4 of 4" in seen
    screen.leave()


# The screen is given back


def test_the_screen_is_given_back_as_it_was(model: LanguageModel, terminal: Terminal) -> None:
    batch = batch_of(model)
    look = Look(THEMES["default"])
    decode = model.checkpoint.tokenizer.decode
    watch(batch, decode, Screen(terminal.theirs), look, texts=1)
    terminal.read()
    sent = terminal.sent.decode()
    assert sent.startswith(ENTER)
    assert sent.endswith(LEAVE)
    assert [sent.count(code) for code in (ENTER, LEAVE, HIDE, SHOW)] == [1, 1, 1, 1]
    assert sent.count("\x1b[?2026h") == sent.count("\x1b[?2026l") > 0
    assert "\n" not in sent
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_the_screen_is_given_back_whatever_goes_wrong(
    model: LanguageModel, terminal: Terminal, error: type[BaseException]
) -> None:
    class Failing(Batch):
        def steps(self) -> Iterator[Step]:
            yield next(super().steps())
            raise error

    batch = batch_of(model)
    batch.__class__ = Failing
    with pytest.raises(error):
        watch(
            batch,
            model.checkpoint.tokenizer.decode,
            Screen(terminal.theirs),
            Look(UNPAINTED),
            texts=1,
        )
    terminal.read()
    assert terminal.sent.decode().endswith(LEAVE)
    assert not terminal.screen.cursor.hidden


def test_without_colours_nothing_is_painted(model: LanguageModel, terminal: Terminal) -> None:
    watch(
        batch_of(model),
        model.checkpoint.tokenizer.decode,
        Screen(terminal.theirs),
        Look(UNPAINTED),
        texts=1,
    )
    terminal.read()
    assert {*re.findall(r"\x1b\[[0-9;]*m", terminal.sent.decode())} == {"\x1b[0m"}


def test_a_terminal_that_hung_up_does_not_stop_a_run(model: LanguageModel) -> None:
    gone = Terminal()
    screen = Screen(gone.theirs)
    batch = batch_of(model)
    view = view_of(batch, model, screen)
    view.draw()
    gone.close()
    for step in batch.steps():
        view.take(step)
        view.draw()
    screen.leave()
    assert len(list(batch.samples())) == 1


# How often it draws


def test_frames_are_a_twelfth_of_a_second_apart() -> None:
    pace, began = Pace(), time.monotonic()
    with pace.counted():
        pass
    while not pace.due():
        sum(range(10_000))
    assert time.monotonic() - began >= 1 / RATE


def test_a_dear_frame_is_paid_off_before_the_next() -> None:
    pace, began = Pace(), time.process_time()
    with pace.counted():
        while time.process_time() - began < 0.004:
            pass
    while not pace.due():
        sum(range(10_000))
    assert time.process_time() - began >= 2 * 0.0039 / SHARE


# Whole commands


def spawn(*words: str, columns: int = 80, rows: int = 24) -> "pexpect.spawn[str]":
    return pexpect.spawn(
        sys.executable,
        ["-m", "esogen", "sample", *words],
        env={**os.environ, "TERM": "xterm-256color"},
        dimensions=(rows, columns),
        encoding="utf-8",
        timeout=60,
    )


def test_an_interrupt_in_the_diffusion_phase_restores_the_terminal() -> None:
    child = spawn(*LONG)
    child.expect("diffusion.*step [1-9]")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    rest = child.before
    assert child.exitstatus == 130
    after = rest[rest.rindex(LEAVE) + len(LEAVE) :]
    assert SHOW in rest
    assert HIDE not in after
    assert [line for line in re.split(r"[\r\n]+", after.replace("\x1b[2K", "")) if line] == [
        "esogen: interrupted before a text was finished; nothing was kept"
    ]


def test_a_sigterm_in_the_sequential_phase_keeps_what_is_finished() -> None:
    child = spawn(*LONG, "-n", "2", "--batch-size", "1")
    child.expect("text 2 of 2")
    child.expect("sequential")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.close()
    rest = child.before
    assert child.exitstatus == 130
    after = rest[rest.rindex(LEAVE) + len(LEAVE) :]
    assert SHOW in rest
    assert HIDE not in after
    assert "esogen: interrupted: kept 1 of 2 texts in stdout; the seed is 1" in after


def test_the_terminal_sees_the_run_while_the_text_goes_into_a_pipe(
    tiny_folder: Path, terminal: Terminal
) -> None:
    words = ["-m", "esogen", "sample", "The cat", "--seed", "1", "-m", str(tiny_folder)]
    done = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal.theirs,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    assert done.stdout is not None
    while done.poll() is None:
        terminal.read()
    terminal.read()
    text = done.stdout.read()
    done.stdout.close()
    assert done.returncode == 0
    assert b"\x1b" not in text
    assert text.startswith(b"The cat")
    assert ENTER.encode() in terminal.sent
    assert terminal.sent.index(LEAVE.encode()) < terminal.sent.index(b"tokens/s \xc2\xb7 esogen")


TMUX = shutil.which("tmux")


@pytest.mark.slow
@pytest.mark.skipif(TMUX is None, reason="needs tmux")
def test_tmux_shows_both_phases_through_resizes_and_keeps_a_clean_scrollback(
    tmp_path: Path,
) -> None:
    assert TMUX is not None
    server = [TMUX, "-S", str(tmp_path / "socket")]

    def tmux(*words: str) -> str:
        done = subprocess.run([*server, *words], capture_output=True, check=True, text=True)
        return done.stdout

    def wait_for(pattern: str) -> str:
        for _ in range(1200):
            seen = tmux("capture-pane", "-p")
            if re.search(pattern, seen):
                return seen
            time.sleep(0.05)
        raise AssertionError(f"{pattern} was never seen; the screen was:\n{seen}")

    shell = "env PS1='$ ' bash --norc --noprofile"
    tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", shell)
    try:
        tmux("set", "-g", "status", "off")
        command = " ".join([sys.executable, "-m", "esogen", "sample", *LONG[:-1], "'Once upon a'"])
        tmux("send-keys", f"echo before; {command}; echo after", "Enter")
        seen = wait_for(r"diffusion · step [1-9]")
        assert "Once upon a" in seen
        assert "before" not in seen
        for columns, rows in ((20, 5), (100, 30), (40, 10)):
            tmux("resize-window", "-x", str(columns), "-y", str(rows))
            seen = wait_for(r"━")
            time.sleep(0.3)
            assert tmux("capture-pane", "-p").count("◆") == 1
        wait_for("sequential")
        wait_for("▓")
        tmux("resize-window", "-x", "80", "-y", "24")
        wait_for("(?m)^after$")
        everything = tmux("capture-pane", "-p", "-S", "-")
    finally:
        tmux("kill-server")
    assert not {*"░▓◆━"} & {*everything}
    _, text = everything.split("\nbefore\n")
    assert text.startswith("Once upon a")
    assert len(re.findall("(?m)^Once upon a", everything)) == 1
    assert "tokens/s · esogen sample" in text
