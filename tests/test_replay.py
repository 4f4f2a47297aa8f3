"""`esogen replay`: on a real terminal with keys, without one, and with traces that are wrong."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyte
import pytest

from esogen.checkpoint.folder import Checkpoint
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.cli.replay import player_of
from esogen.trace_file import TraceFile
from esogen.view.canvas import Pieces
from esogen.view.export import Reel
from esogen.view.flow import Line
from esogen.view.player import JUMP, SPEEDS, Keyboard, Player
from esogen.view.stage import Size, Stage
from esogen.view.tape import Tape
from tests.calls import call
from tests.test_lightness import packages_imported_by
from tests.traces import changed, header_for, run_over, written

STORY = "Once upon a time there was a little cat. The cat had a red hat and a big, round ball."
OTHER = "Tom said, “I am hungry!” His mother gave him an apple."
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m [red]markup[/] \u202eabc <script>alert(1)</script>"
PATIENCE = 60.0


@pytest.fixture
def trace(tmp_path: Path, tiny_folder: Path, tiny_checkpoint: Checkpoint) -> Path:
    """Two texts of the tiny model."""
    return _trace(tmp_path / "run.jsonl", tiny_folder, tiny_checkpoint, STORY, OTHER)


def _trace(path: Path, folder: Path, checkpoint: Checkpoint, *texts: str) -> Path:
    runs = [run_over(checkpoint.tokenizer.encode(text)) for text in texts]
    path.write_bytes(written(header_for(folder, checkpoint.config.vocab_size), runs))
    return path


def esogen(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a call without terminals."""
    done = call(*words)
    return done.code, done.stdout, done.stderr


def problem(*words: str, code: int = 1) -> str:
    """The one line on stderr of a replay that went wrong."""
    found, stdout, stderr = esogen("replay", *words)
    assert (found, stdout) == (code, "")
    assert stderr.startswith("esogen: ")
    assert stderr.count("\n") == 1
    assert "defect" not in stderr
    return stderr


# Without a terminal


def test_without_a_terminal_the_texts_are_printed(trace: Path) -> None:
    assert esogen("replay", str(trace)) == (0, f"{STORY}\n---\n{OTHER}\n", "")
    assert esogen("replay", str(trace), "--no-live", "--text", "2") == (0, f"{OTHER}\n", "")


def test_a_step_is_printed_as_it_stood_there(trace: Path) -> None:
    calls = TraceFile(trace)[0].calls
    code, stdout, stderr = esogen("replay", str(trace), "--text", "1", "--step", "2")
    assert (code, stderr) == (0, "")
    assert "░" in stdout
    assert "\x1b" not in stdout
    assert stdout.startswith("On")
    done = esogen("replay", str(trace), "--text", "1", "--step", str(calls))[1]
    assert done.split() == STORY.split()
    nothing = esogen("replay", str(trace), "--text", "1", "--step", "0")[1]
    assert {*nothing.removeprefix("On")} == {"░", " ", "\n"}


def test_a_step_that_was_not_made_is_told_which_were(trace: Path) -> None:
    calls = TraceFile(trace)[0].calls
    said = problem(str(trace), "--text", "1", "--step", "400", code=2)
    assert f"--step is 400; it must be from 0 to {calls}, the steps of text 1" in said


@pytest.mark.parametrize("suffix", [".svg", ".html", ".cast", ".gif", ".txt", ".SVG"])
def test_a_file_is_written_whole_and_nothing_is_said(
    trace: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"run{suffix}"
    assert esogen("replay", str(trace), "--export", str(target)) == (0, "", "")
    assert target.stat().st_size > 50
    assert sorted(tmp_path.iterdir()) == sorted([trace, target])


@pytest.mark.parametrize("name", ["run.png", "run", "run.mp4"])
def test_an_unknown_suffix_is_told_those_that_work(trace: Path, tmp_path: Path, name: str) -> None:
    said = problem(str(trace), "--export", str(tmp_path / name), code=2)
    assert "it must be one of .svg, .html, .cast, .gif, .txt" in said
    assert [*tmp_path.iterdir()] == [trace]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--text", "3"), "--text is 3; it must be from 1 to 2, as the trace holds"),
        (("--text", "0"), "--text is 0; it must be a whole number of at least 1"),
        (("--step", "-1"), "--step is -1"),
        (("--speed", "0"), "--speed is 0; it must be a number from 0.1 to 10"),
        (("--theme", "dark"), "--theme is 'dark'; it must be one of default"),
        (("--step", "1", "--export", "a.svg"), "--export and --step exclude each other"),
        (("--live", "--step", "1"), "--step and --live exclude each other"),
        (("--live",), "--live needs a terminal"),
    ],
)
def test_wrong_usage_is_told(trace: Path, flags: tuple[str, ...], said: str) -> None:
    assert said in problem(str(trace), *flags, code=2)


def test_a_replay_imports_no_torch(trace: Path, tmp_path: Path) -> None:
    export = ("--export", str(tmp_path / "run.svg"))
    imported = packages_imported_by(["-m", "esogen", "replay", str(trace), *export])
    assert "tokenizers" in imported
    assert not imported & {"torch", "safetensors", "huggingface_hub"}


# Traces that are wrong


def test_a_trace_that_is_not_there_or_none_is_told(tmp_path: Path) -> None:
    assert "No such file" in problem(str(tmp_path / "no.jsonl"))
    (tmp_path / "text.txt").write_text("Once upon a time\n")
    assert "it is no JSON" in problem(str(tmp_path / "text.txt"))


def test_a_trace_that_was_cut_short_is_told(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-20])
    assert "is cut short: it ends in line 3" in problem(str(trace))


def test_a_raw_run_replays_with_its_ends_of_text(tiny_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "raw.jsonl"
    words = ("--raw", "--seed", "1", "--trace", str(run), "-m", str(tiny_folder), "<|endoftext|>A")
    code, text, _ = esogen("sample", *words)
    assert (code, "<|endoftext|>" in text) == (0, True)
    assert esogen("replay", str(run), "--no-live")[:2] == (0, text)


def test_a_trace_without_texts_is_told(
    tmp_path: Path, tiny_folder: Path, tiny_checkpoint: Checkpoint
) -> None:
    path = _trace(tmp_path / "run.jsonl", tiny_folder, tiny_checkpoint)
    assert "holds no text" in problem(str(path))


def test_a_model_that_is_gone_is_told_and_can_be_named(trace: Path, tiny_folder: Path) -> None:
    trace.write_bytes(changed(trace.read_bytes(), 1, model="gone/away"))
    said = problem(str(trace))
    assert "needs the tokenizer of its model: the model 'gone/away' is not in the cache" in said
    assert "--model" in said
    code, stdout, _ = esogen("replay", str(trace), "--model", str(tiny_folder), "--text", "1")
    assert (code, stdout) == (0, f"{STORY}\n")


def test_another_vocabulary_is_told(trace: Path) -> None:
    said = problem(str(trace), "--model", "stories")
    assert "was made with the tokenizer" in said
    trace.write_bytes(changed(trace.read_bytes(), 1, model="stories"))
    assert "was made with the tokenizer" in problem(str(trace))
    trace.write_bytes(changed(trace.read_bytes(), 1, tokenizer="\x1b[2J"))
    assert "\x1b" not in problem(str(trace))


def test_a_vocabulary_of_another_size_is_told(trace: Path) -> None:
    trace.write_bytes(changed(trace.read_bytes(), 1, vocab_size=5000))
    assert "holds 299 tokens where the network has a vocabulary of 5000" in problem(str(trace))


def test_a_hostile_text_reaches_a_pipe_as_it_is_and_a_terminal_visible(
    tmp_path: Path, tiny_folder: Path, tiny_checkpoint: Checkpoint
) -> None:
    path = _trace(tmp_path / "run.jsonl", tiny_folder, tiny_checkpoint, HOSTILE)
    assert esogen("replay", str(path))[1] == f"{HOSTILE}\n"
    step = str(TraceFile(path)[0].calls)
    with Session("replay", str(path), "--step", step) as session:
        session.finish()
        assert session.code == 0
        assert "[red]markup[/]" in session.text
        assert "owned" in session.text
        assert session.screen.title == ""
        assert b"\x1b]" not in session.sent
        assert b"\x1b[2J" not in session.sent


# The player, without a terminal


@pytest.fixture
def player(trace: Path, tiny_tokenizer: Tokenizer) -> Player:
    texts = TraceFile(trace)
    stage = Stage(Pieces(tiny_tokenizer.decode), "certainty")
    return Player(lambda number: Tape.of(texts[number], None), len(texts), stage)


def shown(player: Player, columns: int = 80, rows: int = 24) -> str:
    """What a reader sees."""
    lines: list[Line] = player.rows(Size(columns, rows), 0.0)
    assert len(lines) <= rows
    assert all(line.width <= columns for line in lines)
    return "\n".join("".join(text for text, _ in line.spans) for line in lines)


def test_time_plays_the_steps_at_their_seconds_and_ends(player: Player) -> None:
    line = player.tape.timeline
    assert player.due == pytest.approx(line.starts[0])
    player.advance(line.starts[4] + 0.001)
    assert player.after == 5
    player.advance(1000.0)
    assert (player.after, player.playing, player.due) == (player.tape.calls, False, None)
    assert "end" in shown(player)
    assert STORY[-5:] in shown(player)


def test_speed_makes_time_pass_faster(player: Player) -> None:
    starts = player.tape.timeline.starts
    player.press("\x1b[A")
    assert player.speed == 2
    player.advance(starts[6] / 2 + 0.001)
    assert player.after == 7
    for _ in range(20):
        player.press("+")
    assert player.speed == SPEEDS[-1]
    for _ in range(20):
        player.press("-")
    assert player.speed == SPEEDS[0]
    assert "0.125×" in shown(player)


def test_a_replay_at_twice_the_speed_takes_half_the_time(
    trace: Path, tiny_tokenizer: Tokenizer
) -> None:
    def seconds(speed: float) -> float:
        file = TraceFile(trace)
        texts = [*file]
        reel = Reel(file.header, texts, tiny_tokenizer, speed=speed)
        player, taken = player_of(reel, texts), 0.0
        while player.due is not None:
            taken += player.due
            player.advance(player.due + 1e-9)
        return taken

    assert seconds(2.0) == pytest.approx(seconds(1.0) / 2, rel=1e-3)
    assert seconds(1.0) > 0


def test_keys_step_and_jump_within_the_text_and_pause(player: Player) -> None:
    calls = player.tape.calls
    assert calls > 2 * JUMP
    for keys, after in (
        (("\x1b[C",), 1),
        (("\x1b[C", "l"), 3),
        (("\x1b[D",), 2),
        (("h", "\x1bOD", "\x1b[D"), 0),
        (("]",), JUMP),
        (("\x1b[6~",), 2 * JUMP),
        (("[",), JUMP),
        (("\x1b[F",), calls),
        (("]",), calls),
        (("\x1b[H",), 0),
        (("1", "2", "\r"), 12),
        (("9", "9", "9", "9", "\n"), calls),
        (("3", "7", "\x7f", "\n"), 3),
        (("3", "x", "\n"), 3),
    ):
        for key in keys:
            player.press(key)
        assert player.after == after
        assert not player.playing
        assert f"step {after} of {calls}" in shown(player)
    player.press(" ")
    assert player.playing
    player.advance(0.6)
    assert player.after > 3


def test_a_step_that_is_being_typed_is_shown(player: Player) -> None:
    for key in "12":
        player.press(key)
    assert "go to step 12" in shown(player)


def test_space_at_the_end_starts_over(player: Player) -> None:
    player.press("\x1b[F")
    player.press(" ")
    assert (player.after, player.playing) == (0, True)


def test_texts_follow_each_other_round(player: Player) -> None:
    assert "text 1 of 2" in shown(player)
    player.press("n")
    player.press("\x1b[F")
    assert "text 2 of 2" in shown(player)
    assert "hungry" in shown(player)
    player.press("n")
    assert "text 1 of 2" in shown(player)
    player.press("p")
    assert "text 2 of 2" in shown(player)


@pytest.mark.parametrize("columns", [20, 40, 79, 80, 200])
@pytest.mark.parametrize("rows", [1, 5, 6, 24])
def test_the_player_fits_every_screen_and_tells_its_keys_where_there_is_room(
    player: Player, columns: int, rows: int
) -> None:
    text = shown(player, columns, rows)
    assert ("space pauses" in text) == (rows >= 6)
    assert ("q quit" in text) == (rows >= 6 and columns > 20)


# The player, on a terminal


class Session:
    """`esogen` as a process on a terminal of its own, and the screen that a person would see."""

    def __init__(self, *words: str, columns: int = 80, rows: int = 24) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.sent = b""
        self.code: int | None = None
        self._ours, theirs = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(theirs)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esogen", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            start_new_session=True,
        )
        self._theirs = theirs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._theirs)
        os.close(self._ours)

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size, as a person does."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def until(self, seen: Callable[[], bool]) -> None:
        """Read on until this is to be seen on the screen."""
        deadline = time.monotonic() + PATIENCE
        while not seen():
            assert time.monotonic() < deadline, f"not seen; the screen shows:\n{self.text}"
            self._read(0.05)

    def finish(self) -> None:
        """Read on until the process has ended."""
        self.until(lambda: self._process.poll() is not None)
        while self._read(0.05):
            pass
        self.code = self._process.returncode

    @property
    def text(self) -> str:
        """What is to be seen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: its modes, its cursor, its first screen."""
        modes = termios.tcgetattr(self._theirs)
        left = self.sent.rfind(b"\x1b[?1049l") > self.sent.rfind(b"\x1b[?1049h")
        return modes == self.modes and not self.screen.cursor.hidden and left

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        data = os.read(self._ours, 65536)
        self.sent += data
        self._stream.feed(data)
        return bool(data)


def test_a_person_plays_pauses_steps_jumps_resizes_and_quits(trace: Path) -> None:
    calls = TraceFile(trace)[0].calls
    with Session("replay", str(trace)) as session:
        session.until(lambda: "space pauses" in session.text and "░".encode() in session.sent)
        session.type(" ")
        session.until(lambda: "space plays" in session.text and "paused" in session.text)
        session.type("7\r")
        session.until(lambda: f"step 7 of {calls}" in session.text)
        session.type("\x1b[C")
        session.until(lambda: f"step 8 of {calls}" in session.text)
        session.type("\x1b[D\x1b[D")
        session.until(lambda: f"step 6 of {calls}" in session.text)
        session.resize(40, 10)
        session.until(lambda: f"step 6 of {calls}" in session.text and "q quit" in session.text)
        session.resize(100, 30)
        session.until(lambda: "↑↓ speed" in session.text)
        session.type("\x1b[F")
        session.until(lambda: "round ball." in session.text and "░" not in session.text)
        assert f"sequential · step {calls} of {calls}" in session.text
        session.type("n")
        session.until(lambda: "text 2 of 2" in session.text)
        session.type("q")
        session.finish()
        assert session.code == 0
        assert session.restored
        assert b"\x1b[38;5;" in session.sent
        assert "made by esogen sample --seed 7 'A cat'" in session.text.replace("\n", "")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGQUIT, -signal.SIGQUIT)],
)
def test_a_signal_gives_the_terminal_back(trace: Path, number: signal.Signals, code: int) -> None:
    with Session("replay", str(trace)) as session:
        session.until(lambda: "░".encode() in session.sent)  # on a slow machine they may be gone
        if number == signal.SIGINT:
            session.type("\x03")
        else:
            session.send(number)
        session.finish()
        assert session.code == code
        assert session.restored


def test_a_replay_that_was_stopped_goes_on_with_its_keys(trace: Path) -> None:
    with Session("replay", str(trace)) as session:
        session.until(lambda: "░".encode() in session.sent)  # on a slow machine they may be gone
        session.send(signal.SIGTSTP)  # a session of one process is not stopped, but gives way
        session.until(lambda: b"\x1b[?1049l" in session.sent)
        session.type("\x1b[H\x1b[C")
        session.until(lambda: "step 1 of" in session.text and "paused" in session.text)
        session.type("q")
        session.finish()
        assert session.restored


def test_a_hostile_text_plays_without_steering_the_terminal(
    tmp_path: Path, tiny_folder: Path, tiny_checkpoint: Checkpoint
) -> None:
    path = _trace(tmp_path / "run.jsonl", tiny_folder, tiny_checkpoint, HOSTILE)
    path.write_bytes(changed(path.read_bytes(), 1, command=HOSTILE))
    with Session("replay", str(path)) as session:
        session.until(lambda: "░".encode() in session.sent)  # on a slow machine they may be gone
        session.type("\x1b[F")
        session.until(lambda: "[red]markup[/]" in session.text)
        assert "␛[2J␛]0;owned␇" in session.text
        session.type("q")
        session.finish()
        assert session.screen.title == ""
        assert b"\x1b]" not in session.sent
        assert session.restored


def test_colours_can_be_refused(trace: Path) -> None:
    with Session("replay", str(trace), "--no-color") as session:
        session.until(lambda: "░".encode() in session.sent)  # on a slow machine they may be gone
        session.type("\x1b[C")
        session.until(lambda: "step 1 of" in session.text)
        assert b"\x1b[38;5;" not in session.sent


def test_the_help_names_every_flag() -> None:
    code, stdout, _ = esogen("replay", "--help")
    assert code == 0
    for flag in ("--export", "--text", "--step", "--live", "--speed", "--theme", "--color-by"):
        assert flag in stdout


def test_a_key_that_arrives_in_pieces_is_one_key() -> None:
    ours, theirs = pty.openpty()
    try:
        with Keyboard(theirs) as keyboard:
            found: list[str] = []
            for piece in (b"\x1b[", b"C", b"\x1b", b"[5", b"~", b"a"):
                os.write(ours, piece)
                found += keyboard.pressed(1.0)
        assert found == ["\x1b[C", "\x1b[5~", "a"]
    finally:
        os.close(ours)
        os.close(theirs)
