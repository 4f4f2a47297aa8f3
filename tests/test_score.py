"""`esogen score`: what it writes, paints, keeps and refuses."""

import csv
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from esogen.cli import main
from esogen.cli.score_progress import Meter
from esogen.cli.score_sources import Sources
from esogen.cli.terminal import Console
from esogen.language_model import LanguageModel, load
from esogen.scoring.documents import Reading
from esogen.view.flow import cells as columns
from esogen.view.heatmap import SCALES, Cell, Picture, html, lines_of, on_terminal, svg
from tests.calls import Esogen, Result, call, problem
from tests.test_cli import Terminal

LETTER = "Tom had a little cat.\n\nThe cat had a red hat & a <big> ball. 🐶 Zoë"
LINES = (
    "The cat.\nOne day the sun was very hot, and the birds sang.\nT\n\nTom said, “I am hungry!”\n"
)
ESCAPES = re.compile(r"\x1b\[[0-9;]*[mK]")


@pytest.fixture(autouse=True)
def environment(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESOGEN_MODEL", str(tiny_folder))


@pytest.fixture
def esogen() -> Esogen:
    """Calls `esogen score` in this process, with a stdin that is given and no terminal."""
    return partial(call, "score")


@pytest.fixture
def on_terminal_(monkeypatch: pytest.MonkeyPatch) -> Esogen:
    """Calls `esogen score` in this process with its streams on a terminal."""

    def call(*words: str) -> Result:
        with monkeypatch.context() as patch:
            terminal = Terminal()
            for name in ("stdin", "stdout", "stderr"):
                patch.setattr(sys, name, terminal.stream("r" if name == "stdin" else "w"))
            code = main(("score", *words))
            sys.stderr.flush()
        return Result(code, "", "", terminal.close())

    return call


@pytest.fixture(scope="module")
def lm(tiny_folder: Path) -> LanguageModel:
    return load(str(tiny_folder), device="cpu")


@pytest.fixture
def letter(tmp_path: Path) -> str:
    path = tmp_path / "letter.txt"
    path.write_text(LETTER + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.txt"
    path.write_text(LINES, encoding="utf-8")
    return str(path)


# What is written


def test_the_figures_of_a_text_are_those_of_the_python_face(
    esogen: Esogen, lm: LanguageModel, letter: str
) -> None:
    result, wanted = esogen(letter), lm.score(LETTER)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == (
        f"{letter}: {len(wanted.tokens)} tokens · log p = {wanted.log_prob:.2f} nats"
        f" · {wanted.nats_per_token:.4f} nats/token · perplexity {wanted.perplexity:.2f}"
        f" · {wanted.bits_per_byte:.4f} bits/byte · exact, left to right\n"
    )


def test_stdin_text_and_file_are_one(esogen: Esogen, letter: str) -> None:
    figures = {
        esogen(letter).stdout.split(": ", 1)[1],
        esogen("--text", LETTER).stdout.split(": ", 1)[1],
        esogen(stdin=LETTER.encode()).stdout.split(": ", 1)[1],
        esogen("-", stdin=LETTER.encode()).stdout.split(": ", 1)[1],
    }
    assert len(figures) == 1


def test_several_texts_have_a_total(esogen: Esogen, lines: str) -> None:
    result = esogen("--lines", lines)
    *texts, total = result.stdout.splitlines()
    assert [text.split(":")[0] for text in texts] == [f"{lines}, text {i}" for i in (1, 2, 4)]
    tokens = [int(re.search(r": (\d+) tokens", text)[1]) for text in (*texts, total)]  # type: ignore[index]
    nats = [float(re.search(r"= (-[\d.]+) nats", text)[1]) for text in (*texts, total)]  # type: ignore[index]
    assert total.startswith("all 3 texts: ")
    assert sum(tokens[:3]) == tokens[3]
    assert sum(nats[:3]) == pytest.approx(nats[3], abs=0.02)
    assert "left out 1 text;" in result.stderr
    assert "text 3 is 1 token long" in result.stderr


def test_a_bound_says_that_it_is_one_and_how_it_tightened(esogen: Esogen, letter: str) -> None:
    first, *looser = esogen(letter, "--orders", "20", "--alpha-0", "0.5").stdout.splitlines()
    assert "log p ≥ -" in first
    assert first.endswith(" · bound of 20 exact likelihoods, random order, alpha_0 0.5")
    assert [line.split(":")[0] for line in looser] == ["  1 order", "  10 orders"]
    assert all(" ± " in line for line in (first, *looser))


def test_the_nelbo_says_that_it_is_one(esogen: Esogen, letter: str) -> None:
    (line,) = esogen(letter, "--bound", "nelbo", "--time-samples", "4").stdout.splitlines()
    assert "log p ≥ -" in line
    assert " ± " in line
    assert line.endswith("NELBO, alpha_0 1, 4 time samples")


def test_jsonl_has_every_token_of_every_text(esogen: Esogen, lines: str) -> None:
    result = esogen("--lines", lines, "--format", "jsonl", "--end-of-text", "--by", "gain")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2, 3]
    for record in records:
        size = len(record["tokens"])
        assert {len(record[name]) for name in ("log_probs", "ranks", "gains", "pieces")} == {size}
        assert "".join(record["pieces"]) == record["text"] + "<|endoftext|>"
        assert sum(record["log_probs"]) == pytest.approx(record["log_prob"])
        assert min(record["ranks"]) >= 1
        assert record["bytes"] == len(record["text"].encode())
        bits = -record["log_prob"] / math.log(2) / record["bytes"]
        assert record["bits_per_byte"] == pytest.approx(bits)
        assert (record["order"], record["orders"], record["error"]) == ("left-to-right", 1, None)


def test_json_is_one_array_and_csv_a_row_a_token(esogen: Esogen, lines: str) -> None:
    records = json.loads(esogen("--lines", lines, "--format", "json", "--orders", "3").stdout)
    assert [record["orders"] for record in records] == [3, 3, 3]
    table = list(csv.DictReader(io.StringIO(esogen("--lines", lines, "--format", "csv").stdout)))
    assert [row["index"] for row in table] == [
        str(record["index"]) for record in records for _ in record["tokens"]
    ]
    assert "".join(row["piece"] for row in table) == "".join(record["text"] for record in records)
    assert all(float(row["log_prob"]) < 0 and int(row["rank"]) >= 1 for row in table)


def test_a_given_order_is_read_from_its_file(
    esogen: Esogen, lm: LanguageModel, tmp_path: Path
) -> None:
    size = len(lm.score("The cat.").tokens)
    backwards = list(range(size))[::-1]
    orders = tmp_path / "orders"
    orders.write_text(f"{backwards}\n\n{' '.join(map(str, range(size)))}\n")
    said = ("--text", "The cat.", "--order", f"given:{orders}", "--format", "jsonl")
    record = json.loads(esogen(*said).stdout)
    wanted = [lm.score("The cat.", order=order).log_prob for order in (backwards, range(size))]
    assert record["orders"] == 2
    assert record["tightening"][0]["log_prob"] == pytest.approx(sum(wanted) / 2, abs=1e-4)
    both = math.log(sum(map(math.exp, wanted)) / 2)
    assert record["log_prob"] == pytest.approx(both, abs=1e-4)


def test_ranking_writes_the_lines_likeliest_first(esogen: Esogen, lines: str) -> None:
    ranked = [line.split("\t") for line in esogen("--rank", lines).stdout.splitlines()]
    nats = [float(number) for number, _ in ranked]
    assert nats == sorted(nats)
    assert sorted(text for _, text in ranked) == sorted(
        line for line in LINES.splitlines() if len(line) > 1
    )
    records = esogen("--rank", lines, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["text"] for line in records] == [text for _, text in ranked]


def test_comparing_tells_which_draft_is_likelier(
    esogen: Esogen, letter: str, lines: str, lm: LanguageModel
) -> None:
    found = esogen("--compare", letter, lines, "--orders", "2").stdout.splitlines()[-1]
    nats = {
        letter: lm.score(LETTER, orders=2).nats_per_token,
        lines: lm.score(LINES.strip("\n"), orders=2).nats_per_token,
    }
    best, other = sorted(nats, key=nats.__getitem__)
    assert found.startswith(
        f"{best} is likelier per token than {other}: {nats[best]:.4f} against {nats[other]:.4f}"
    )


def test_against_another_model_tells_the_difference(
    esogen: Esogen, letter: str, tiny_folder: Path, lm: LanguageModel
) -> None:
    said = (letter, "--against", "stories")
    record = json.loads(esogen(*said, "--format", "jsonl").stdout)
    stories = load("stories", device="cpu").score(LETTER)
    assert record["log_prob"] == pytest.approx(lm.score(LETTER).log_prob)
    assert record["against"]["model"] == "stories"
    assert record["against"]["log_prob"] == pytest.approx(stories.log_prob)
    words = esogen(*said).stdout
    assert f"  stories: {len(stories.tokens)} tokens" in words
    likelier = max((lm.score(LETTER).log_prob, str(tiny_folder)), (stories.log_prob, "stories"))
    assert f"  likelier by {likelier[1]}: " in words


def test_a_text_too_short_for_one_of_two_models_is_left_out_of_both(
    esogen: Esogen, tmp_path: Path
) -> None:
    lines = tmp_path / "short.txt"
    lines.write_text("Tom\nThe cat.\nOne day the sun was hot.\n")
    said = ("--lines", str(lines), "--against", "stories", "--format", "jsonl")
    alone = [json.loads(line) for line in esogen(*said[:2], *said[4:]).stdout.splitlines()]
    result = esogen(*said)
    both = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["index"] for record in alone] == [0, 1, 2]
    assert [record["index"] for record in both] == [1, 2]
    for record in both:
        assert record["bytes"] == record["against"]["bytes"]
        assert record["index"] == record["against"]["index"]
    assert "left out 1 text;" in result.stderr


def test_top_lists_the_least_expected_words(esogen: Esogen, letter: str) -> None:
    _, *words = esogen(letter, "--top", "4").stdout.splitlines()
    bits = [float(line.split()[0]) for line in words]
    assert len(bits) == 4
    assert bits == sorted(bits, reverse=True)
    assert all(re.search(r"  the model: .*\d%", line) for line in words)
    record = json.loads(esogen(letter, "--top", "4", "--format", "jsonl").stdout)
    assert [f"{found['bits']:.2f}" for found in record["top"]] == [f"{b:.2f}" for b in bits]
    assert all(len(found["instead"]) == 3 for found in record["top"])


# Heat maps


@pytest.mark.parametrize("by", ["surprisal", "rank", "gain"])
def test_a_terminal_is_shown_a_heat_map_and_its_legend(
    on_terminal_: Esogen, letter: str, by: str
) -> None:
    screen = on_terminal_(letter, "--by", by).screen
    assert "\x1b[38;5;" in screen
    plain = ESCAPES.sub("", screen)
    assert "The cat had a red hat & a <big> ball. 🐶 Zoë" in plain
    assert SCALES[by].legend.split(":")[0] in plain  # type: ignore[index]
    assert "log p = " in plain


@pytest.mark.parametrize("words", [("--no-heat-map",), ("--no-color",), ("--format", "jsonl")])
def test_where_no_heat_map_is_wanted_none_is_shown(
    on_terminal_: Esogen, letter: str, words: tuple[str, ...]
) -> None:
    assert "48;5;" not in on_terminal_(letter, "--quiet", *words).screen


def test_a_pipe_gets_no_escape_codes(esogen: Esogen, letter: str) -> None:
    assert "\x1b" not in esogen(letter).stdout
    named = problem(esogen(letter, "--heat-map"), 2)
    assert "--heat-map is for --format text on a terminal with colours" in named


def test_a_text_cannot_steer_the_terminal(on_terminal_: Esogen, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.txt"
    hostile.write_text("The cat \x1b[2J\x1b]0;owned\x07 sat. \u202eThe end.")
    screen = on_terminal_(str(hostile), "--top", "9").screen
    assert "\x1b[2J" not in screen
    assert "\x1b]" not in screen
    assert "\u202e" not in screen
    assert "␛" in screen


@pytest.mark.parametrize("width", [1, 7, 20, 80])
def test_lines_fit_the_width_and_lose_no_letter(width: int) -> None:
    text = "Ein Wort, 日本語のテキスト, e\u0301 and averyveryverylongword. " * 3
    cells = [Cell(word + " ", float(i)) for i, word in enumerate(text.split(" "))]
    lines = lines_of(cells, SCALES["surprisal"], width)
    assert all(sum(columns(part) for part, _ in line.spans) <= width for line in lines)
    kept = "".join(part for line in lines for part, _ in line.spans)
    if width > 1:
        assert re.sub(r"\s", "", kept) == re.sub(r"\s", "", text)
    painted = on_terminal(cells, SCALES["surprisal"], width, "note")
    plain = ESCAPES.sub("", painted)
    assert all(columns(line) <= width for line in plain.splitlines())


def test_numbers_get_the_colours_of_their_steps() -> None:
    scale = SCALES["surprisal"]
    assert [scale.step(value) for value in (0.0, 0.99, 1.0, 12.9, 13.0, 99.0, None)] == [
        *(0, 0, 1, 5, 6, 6),
        None,
    ]
    for each in SCALES.values():
        assert len(each.edges) + 1 == len(each.colors) == len(each.labels)
        assert sorted(each.edges) == list(each.edges)


def luminance(color: str) -> float:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("by", ["surprisal", "rank"])
def test_more_is_darker_and_letters_can_be_read(by: str) -> None:
    colors = [color for color in SCALES[by].colors if color]  # type: ignore[index]
    light = [luminance(color.hex_background) for color in colors]
    assert light == sorted(light, reverse=True)
    for color in colors:
        difference = luminance(color.hex_background) - luminance(color.hex_letters)
        assert abs(difference) > 90


def test_files_of_heat_maps_hold_the_text_and_nothing_that_runs(
    esogen: Esogen, letter: str, tmp_path: Path
) -> None:
    page, picture = tmp_path / "heat.html", tmp_path / "heat.svg"
    result = esogen(letter, "--html", str(page), "--svg", str(picture))
    assert result.code == 0
    drawn = "".join(ElementTree.fromstring(picture.read_text()).itertext())
    for word in ("little", "<", "&", "🐶"):
        assert word in drawn
    source = page.read_text()
    shown = re.sub(r"<[^>]*>", "", source.split("<body>")[1])
    assert "The cat had a red hat &amp; a &lt;big&gt; ball. 🐶 Zoë" in shown
    assert "exact, left to right" in shown
    assert esogen(letter, "--html", "-", "-o", str(tmp_path / "figures")).stdout == source
    for text in (source, picture.read_text()):
        assert "script" not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_hostile_text_stays_text_in_the_files() -> None:
    pictures = [Picture("<b>", [Cell('"><script>alert(1)</script>\x00\ufffe', 3.0)])]
    for draw in (html, svg):
        drawn = draw(pictures, SCALES["surprisal"], "<i>")
        assert "<script" not in drawn
        assert "<b>" not in drawn
        assert "\x00" not in drawn
    ElementTree.fromstring(svg(pictures, SCALES["surprisal"], "&"))


# Long runs


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(
    esogen: Esogen, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, output = tmp_path / "state", tmp_path / "out.jsonl"
    said = ("--lines", lines, "--format", "jsonl", "--state", str(state), "--batch-size", "1")
    whole = esogen(*said[:-4], *said[-2:]).stdout
    with monkeypatch.context() as patch:
        patch.setattr("esogen.scoring.score.CALLS_SORTED", 0)
        patch.setattr(Meter, "read", interrupt_after(1))
        result = esogen(*said)
    assert result.code == 130
    assert "kept 1 text in stdout; the same command goes on from --state" in result.stderr
    check_alike(result.stdout, whole.splitlines()[0])
    state.write_bytes(state.read_bytes() + b'{"index": 1, "cut')
    read: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "read", lambda self, tokens: read.append(tokens))
        again = esogen(*said, "-o", str(output))
    assert again.code == 0
    check_alike(output.read_text(), whole)
    records = [json.loads(line) for line in whole.splitlines()]
    assert sum(read) == sum(len(record["tokens"]) for record in records[1:])
    assert esogen(*said).stdout == output.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_finished_before_a_signal_is_in_the_file(
    esogen: Esogen, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    output = tmp_path / "out.jsonl"
    said = ("--lines", lines, "--format", "jsonl", "--batch-size", "1", "-o", str(output))
    for calls, kept in ((0, "nothing was kept"), (1, f"kept 1 text in {output}")):
        monkeypatch.setattr(Meter, "read", interrupt_after(calls, number))
        result = esogen(*said)
        assert result.code == 130
        assert kept in result.stderr
        assert output.exists() == bool(calls)
    assert len(output.read_text().splitlines()) == 1


@pytest.mark.parametrize("flag", ["--output", "--html", "--svg"])
def test_a_text_is_not_written_over_by_its_own_figures(
    esogen: Esogen, lines: str, flag: str, tmp_path: Path
) -> None:
    before = Path(lines).read_bytes()
    assert "give it a file of its own" in problem(esogen(lines, flag, lines), 2)
    assert Path(lines).read_bytes() == before
    taken = str(tmp_path / "taken")
    if flag != "--output":
        assert f"{flag} is" in problem(esogen(lines, "-o", taken, flag, taken), 2)


def test_a_picture_that_cannot_be_written_is_told_before_anything_is_scored(
    esogen: Esogen, lines: str, tmp_path: Path
) -> None:
    for flag in ("--html", "--svg"):
        result = esogen(lines, flag, str(tmp_path / "nowhere" / "heat"))
        assert f"choose another place with {flag}" in problem(result, 1)
        assert result.stdout == ""


def check_alike(lines: str, wanted: str) -> None:
    """The same texts with the same figures, as far as batches leave them alone."""
    for one, other in zip(lines.splitlines(), wanted.splitlines(), strict=True):
        mine, theirs = json.loads(one), json.loads(other)
        assert mine["text"] == theirs["text"]
        assert mine["log_probs"] == pytest.approx(theirs["log_probs"], abs=1e-4)


def interrupt_after(calls: int, number: int = signal.SIGINT) -> Callable[[Meter, int], None]:
    made: list[int] = []

    def read(self: Meter, tokens: int) -> None:
        made.append(tokens)
        if len(made) > calls:
            signal.raise_signal(number)

    return read


def test_the_state_of_another_run_is_refused(esogen: Esogen, lines: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    esogen("--lines", lines, "--state", str(state))
    named = problem(esogen("--lines", lines, "--state", str(state), "--orders", "2"), 2)
    assert "is of another run (--order left-to-right -> random, --orders 1 -> 2);" in named
    named = problem(esogen("--text", "The cat", "--state", str(state)), 2)
    assert "FILE is another, --lines True -> False, --text is another);" in named
    state.write_text("something else\n")
    assert "is no state of esogen score" in problem(esogen(lines, "--state", str(state)), 2)
    assert state.read_text() == "something else\n"


def test_the_status_line_tells_the_time_left(letter: str) -> None:
    console = Console(None, quiet=True, shown=False, steerable=False, colored=False)
    sources = Sources.of([Path(letter)], None, Reading())
    meter = Meter(console, sources)
    list(sources)
    meter.opened(200)
    meter.read(50)
    assert meter.line(10.0) == "scoring · 50 of 200 tokens · 5 tokens/s · 30 s left"


@pytest.mark.slow
def test_several_processes_share_the_texts_and_the_first_writes(
    esogen: Esogen, tmp_path: Path
) -> None:
    many = tmp_path / "many.jsonl"
    texts = [f"The cat number {i} had a big, round ball." for i in range(7)]
    many.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said = (str(many), "--format", "jsonl", "--orders", "3", "--device", "cpu")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "esogen", "score", *said],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    assert found[1][0] == ""
    together = [json.loads(line) for line in found[0][0].splitlines()]
    alone = [json.loads(line) for line in esogen(*said).stdout.splitlines()]
    assert [record["text"] for record in together] == texts
    for one, other in zip(together, alone, strict=True):
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=1e-3)


# What goes wrong


@pytest.mark.parametrize(
    ("words", "stdin", "code", "named"),
    [
        (("--text", ""), b"", 2, "--text is empty"),
        (("--text", "T"), b"", 2, "--text is 1 token long; a text to be scored must have at least"),
        ((), b"", 2, "stdin is empty"),
        ((), b"ab\xff", 2, "stdin is not UTF-8: there is the byte 0xff at 2"),
        (("nowhere.txt",), b"", 1, "nowhere.txt is not there"),
        (("--text", "a", "b.txt"), b"", 2, "--text and FILE exclude each other"),
        (("-", "-"), b"a", 2, "- is given more than once"),
        (("--text", "The cat", "--order", "rondom"), b"", 2, "did you mean --order random?"),
        (("--text", "The cat", "--order", "foo"), b"", 2, "random, blocks, streams, given:FILE"),
        (("--text", "The cat", "--order", "given:nowhere"), b"", 1, "cannot read nowhere"),
        (("--text", "The cat", "--orders", "0"), b"", 2, "--orders is 0"),
        (("--text", "The cat", "--order", "streams", "--orders", "2"), b"", 2, "--orders is 2; it"),
        (("--text", "The cat", "--context", "99"), b"", 2, "--context is 99; it must be from 0"),
        (("--text", "The cat", "--by", "heat"), b"", 2, "--by is 'heat'; it must be one of"),
        (("--compare",), b"a", 2, "--compare is for two or more FILEs"),
        (
            ("--text", "a b", "--bound", "nelbo", "--top", "2"),
            b"",
            2,
            "--bound nelbo is of a whole",
        ),
        (("--text", "a b", "--bound", "nelbo", "--orders", "9"), b"", 2, "takes --time-samples"),
        (("--bound", "nelbo", "--format", "csv"), b"a b", 2, "--format csv exclude each other"),
        (("-", "--html", "-"), b"a b", 2, "--html is '-', which is scored or written already"),
        (("--html", "-", "--svg", "-", "-o", "x"), b"a b", 2, "--svg is '-', which is scored or"),
        (("--text", "a b", "--orders", "3", "--by", "rank"), b"", 2, "are for one order"),
        (("--text", "The cat", "--by", "gain", "--order", "random"), b"", 2, "gain is told from"),
        (("--text", "The cat", "--against", "nothing"), b"", 1, "nothing"),
    ],
)
def test_what_cannot_be_scored_is_named(
    esogen: Esogen, words: tuple[str, ...], stdin: bytes, code: int, named: str
) -> None:
    assert named in problem(esogen(*words, stdin=stdin), code)


@pytest.mark.parametrize(
    ("orders", "named"),
    [
        ("0 1 x", "line 1, has 'x'; wanted an order"),
        ("0 1\n0 -1", "line 2, has '-1'"),
        ("\n", "is empty; wanted an order"),
        (
            "0 0",
            "order 1 must be a permutation of 0 to 1, one number for each token; it has 0 twice",
        ),
        ("0 2", "1 is missing"),
        ("0 1 2 3 4 5 6 7 8 9 10 11 12 13 14", "is of 15 positions and --text has"),
    ],
)
def test_an_order_file_that_is_no_permutation_is_named(
    esogen: Esogen, tmp_path: Path, orders: str, named: str
) -> None:
    path = tmp_path / "orders"
    path.write_text(orders)
    assert named in problem(esogen("--text", "The cat", "--order", f"given:{path}"), 2)


def test_a_process_number_that_is_none_is_named(
    esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start with torchrun" in problem(esogen("--text", "The cat"), 2)
