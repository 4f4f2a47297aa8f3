"""Traces as files to show: each is read back by what it is made for, a parser or a player."""

import json
import re
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from esogen.checkpoint.folder import Checkpoint
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.cli.replay import SUFFIXES
from esogen.errors import EsogenError
from esogen.view import gif
from esogen.view.canvas import SURE, UNSURE
from esogen.view.export import EXPORTS, Reel
from esogen.view.gif import MOST_ROWS
from esogen.view.palette import PALETTES, Coloring
from esogen.view.pieces import GIVEN, pieces_of
from esogen.view.scene import HOLD, LEAD, Scene, lay_out
from esogen.view.theme import COLOR_BY, THEMES, ColorBy, ThemeWord
from esogen.visible import visible
from tests.chromium import chromium, needs_chromium
from tests.traces import header_for, run_over

STORY = (
    "Once upon a time there was a little cat. The cat had a red hat and a big, round ball.\n\n"
    "“Straße, 漢字 and 👩‍👩‍👧!” said the cat;\tand the old tree near the river was very, very hot."
)
HOSTILE = (
    "<script>window.hacked = 1</script> </pre></p><img src=x onerror=hacked=2> &amp; ]]> --> "
    "</style>\x1b[2J\x1b]0;owned\x07 \x9b31m \u202eabc\u202c \ufffe\uffff \x00 ${data} $data"
    ' " onload="hacked=3" \u2028 [red]markup[/] </title></svg>'
)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def reel(tiny_folder: Path, tiny_checkpoint: Checkpoint) -> Reel:
    return _reel(STORY, tiny_folder, tiny_checkpoint)


@pytest.fixture
def hostile(tiny_folder: Path, tiny_checkpoint: Checkpoint) -> Reel:
    return _reel(HOSTILE, tiny_folder, tiny_checkpoint)


def _reel(text: str, folder: Path, checkpoint: Checkpoint) -> Reel:
    ids = checkpoint.tokenizer.encode(text)
    header = header_for(folder, checkpoint.config.vocab_size, model=text, command=text)
    return Reel(header, [run_over(ids)], checkpoint.tokenizer)


def squeezed(text: str) -> str:
    """What is left of a text when spaces do not count."""
    return "".join(text.split())


# Pieces and scenes


@given(st.lists(st.integers(0, 298), max_size=60), st.data())
def test_pieces_joined_are_the_text(
    tiny_tokenizer: Tokenizer, ids: Sequence[int], data: st.DataObject
) -> None:
    raw = data.draw(st.booleans())
    ends = not raw and tiny_tokenizer.end_of_text in ids
    kept = ids[: ids.index(tiny_tokenizer.end_of_text)] if ends else ids
    pieces = pieces_of(run_over(ids, given=0), tiny_tokenizer, raw=raw)
    assert "".join(piece.text for piece in pieces) == tiny_tokenizer.decode(kept)


def test_a_piece_comes_with_the_last_of_its_tokens_and_is_as_sure_as_the_least(
    tiny_tokenizer: Tokenizer,
) -> None:
    ids = tiny_tokenizer.encode("漢")
    assert len(ids) == 3
    recorded = run_over([*ids, *ids], given=0)
    first, second = pieces_of(recorded, tiny_tokenizer, raw=False)
    assert (first.text, second.text) == ("漢", "漢")
    assert [first.step, second.step] == [max(recorded.steps[:3]), max(recorded.steps[3:])]
    assert first.certainty == pytest.approx(0.1)


@settings(max_examples=60)
@given(
    st.text(st.sampled_from("ab,. \n\t漢é\u0301👩\u200d\x1b\u200b"), max_size=120),
    st.integers(2, 30),
)
def test_a_scene_holds_every_character_once_and_in_its_columns(
    tiny_tokenizer: Tokenizer, text: str, columns: int
) -> None:
    recorded = run_over(tiny_tokenizer.encode(text))
    pieces = pieces_of(recorded, tiny_tokenizer, raw=False)
    scene = lay_out(pieces, columns, diffusion_steps=recorded.diffusion_steps, calls=recorded.calls)
    assert squeezed("".join(run.text for run in scene.runs)) == squeezed(visible(text))
    places = [(run.row, run.column, run.column + run.width) for run in scene.runs]
    assert all(start >= 0 and end <= columns for _, start, end in places)
    assert all(a[0] < b[0] or a[2] <= b[1] for a, b in pairwise(places))
    assert all(run.row < scene.rows for run in scene.runs)


def test_lines_of_a_scene_end_between_words_and_keep_indents(tiny_tokenizer: Tokenizer) -> None:
    text = "one two three\n  four\nfivesixseveneight"
    pieces = pieces_of(run_over(tiny_tokenizer.encode(text)), tiny_tokenizer, raw=False)
    scene = lay_out(pieces, 8, diffusion_steps=0, calls=99)
    rows = [[" "] * 8 for _ in range(scene.rows)]
    for run in scene.runs:
        rows[run.row][run.column : run.column + run.width] = run.text
    assert ["".join(row).rstrip() for row in rows] == [
        *("one two", "three", "  four"),
        *("fivesixs", "eveneigh", "t"),
    ]


def test_steps_are_played_one_after_the_other(reel: Reel) -> None:
    scene = reel.scene(reel.first())
    line = scene.timeline
    assert len(line.starts) == scene.calls
    assert line.starts[0] == LEAD
    assert list(line.starts) == sorted(set(line.starts))
    assert line.starts[scene.diffusion_steps] == pytest.approx(line.switch)
    assert line.end == pytest.approx(line.settled + HOLD)
    assert scene.masks_left[0] == sum(piece.step != GIVEN for piece in scene.pieces)
    assert scene.masks_left[-1] == 0
    assert list(scene.masks_left) == sorted(scene.masks_left, reverse=True)


@pytest.mark.parametrize("word", THEMES)
@pytest.mark.parametrize("by", COLOR_BY)
def test_every_piece_has_a_colour_that_can_be_read(
    reel: Reel, word: ThemeWord, by: ColorBy
) -> None:
    coloring = Coloring(PALETTES[word], by)
    scene = reel.scene(reel.first())
    numbers = {coloring.number(p, scene.calls) for p in scene.pieces if p.step != GIVEN}
    assert numbers <= {*range(len(coloring.colors))}
    assert len(numbers) > 1
    palette = coloring.palette
    for color in (*coloring.colors, palette.calm, palette.written, palette.given, palette.quiet):
        assert _contrast(color, palette.page) >= 3.5, color


def _contrast(first: str, second: str) -> float:
    """Of two colours, by the formula of WCAG 2."""
    dark, light = sorted(_luminance(color) for color in (first, second))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    parts = [level / 255 for level in bytes.fromhex(color[1:])]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# SVG


def test_an_svg_is_xml_that_holds_the_text_and_nothing_that_acts(reel: Reel, hostile: Reel) -> None:
    for shown in (reel, hostile):
        root = ElementTree.fromstring(EXPORTS[".svg"](shown))
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags == {
            *("svg", "title", "desc", "style", "rect", "circle", "path", "g", "text", "clipPath")
        }
        names = {name for element in root.iter() for name in element.attrib}
        assert not {name for name in names if name.startswith("on") or "href" in name}
        style = root.findtext(f"{SVG}style") or ""
        assert "url(" not in style
        assert "@import" not in style
        words = [element for element in root.iter(f"{SVG}text") if "lengthAdjust" in element.attrib]
        drawn = "".join(element.text or "" for element in words)
        wanted = squeezed(visible(shown.plain(shown.first())))
        assert drawn == wanted.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")


def test_every_animation_of_an_svg_is_there_and_is_used(reel: Reel) -> None:
    root = ElementTree.fromstring(EXPORTS[".svg"](reel))
    style = root.findtext(f"{SVG}style") or ""
    defined = re.findall(r"@keyframes (\w+)", style)
    assert len(defined) == len(set(defined))
    assert {*re.findall(r"animation-name:(\w+)", style)} == {*defined}
    classes = {name for element in root.iter() for name in element.get("class", "").split()}
    tokens = {name for name in classes if re.fullmatch(r"[kw]\d+", name)}
    assert tokens == {name for name in defined if re.fullmatch(r"[kw]\d+", name)}


def test_a_long_run_makes_no_endless_svg(tiny_folder: Path, tiny_checkpoint: Checkpoint) -> None:
    ids = tiny_checkpoint.tokenizer.encode("cat " * 4000)
    header = header_for(tiny_folder, tiny_checkpoint.config.vocab_size)
    long = Reel(header, [run_over(ids)], tiny_checkpoint.tokenizer)
    data = EXPORTS[".svg"](long)
    assert data.count(b"@keyframes k") <= 400
    assert len(data) < 300 * len(ids)


@needs_chromium
def test_a_browser_shows_at_every_moment_what_was_decided_by_then(
    reel: Reel, tmp_path: Path
) -> None:
    path = tmp_path / "run.svg"
    path.write_bytes(EXPORTS[".svg"](reel))
    scene = reel.scene(reel.first())
    line = scene.timeline
    with chromium(tmp_path / "profile") as page:
        page.open(path)
        for after in (0, 1, scene.diffusion_steps, scene.calls // 2, scene.calls):
            starts = (*line.starts, line.end)
            second = (
                (starts[after - 1] + 0.09 if after else 0.1)
                if after < scene.calls
                else line.settled + 1
            )
            shown = page.run(_VISIBLE_AT % (1000 * second))
            assert shown == [r.text for r in scene.runs if scene.pieces[r.piece].step < after]
        page.prefer(prefers_reduced_motion="reduce")
        assert page.run("document.getAnimations().length") == 0
        everything = page.run(_VISIBLE_AT % 0)
        assert everything == [run.text for run in scene.runs]
        assert page.messages == []


_VISIBLE_AT = """(() => {
  for (const a of document.getAnimations()) { a.pause(); a.currentTime = %f; }
  return [...document.querySelectorAll("text[lengthAdjust]")]
    .filter((t) => getComputedStyle(t).opacity > 0.5).map((t) => t.textContent);
})()"""


# HTML


def test_what_a_model_wrote_stays_data_in_the_page(hostile: Reel) -> None:
    page = EXPORTS[".html"](hostile).decode()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page
    assert "onerror=hacked" not in page.replace("src=x onerror=hacked", "")
    assert not re.search(r"https?://", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    written = "".join(text for text, _, _ in data["texts"][0]["pieces"])
    assert written == visible(hostile.plain(hostile.first()))
    assert (data["unsure"], data["sure"]) == (UNSURE, SURE)


@needs_chromium
def test_a_hostile_text_is_shown_and_nothing_of_it_runs(hostile: Reel, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_bytes(EXPORTS[".html"](hostile))
    with chromium(tmp_path / "profile") as page:
        page.open(path)
        page.press("End")
        wanted = visible(hostile.plain(hostile.first()))
        assert page.run("document.getElementById('page').textContent") == wanted
        assert page.run("typeof hacked") == "undefined"
        assert page.messages == []


@needs_chromium
def test_the_player_is_worked_with_keys_and_says_where_it_is(
    reel: Reel, tmp_path: Path, tiny_folder: Path, tiny_checkpoint: Checkpoint
) -> None:
    other = run_over(tiny_checkpoint.tokenizer.encode("Tom said"), given=0)
    path = tmp_path / "run.html"
    path.write_bytes(EXPORTS[".html"](Reel(reel.header, [reel.first(), other], reel.tokenizer)))
    scene = reel.scene(reel.first())
    calls = scene.calls
    with chromium(tmp_path / "profile") as page:
        page.prefer(prefers_reduced_motion="reduce")
        page.open(path)
        said = "document.getElementById('said').textContent"
        slider = "document.getElementById('scrub')"
        assert page.run(said) == f"step 0 of {calls}, not begun, {scene.masks_left[0]} masks left"
        for _ in range(2):
            page.press("ArrowRight")
        assert (
            page.run(said)
            == f"step 2 of {calls}, diffusion phase, {scene.masks_left[2]} masks left"
        )
        masks = page.run("document.querySelectorAll('#page .m').length")
        assert masks == scene.masks_left[2]
        page.press("ArrowLeft")
        assert page.run(f"{slider}.value") == "1"
        page.run(f"{slider}.value = {calls - 1}, {slider}.dispatchEvent(new Event('input'))")
        assert page.run(said).startswith(f"step {calls - 1} of {calls}, sequential phase, ")
        page.press("End")
        assert page.run(said) == f"step {calls} of {calls}, finished, 0 masks left"
        label = page.run("document.getElementById('page').getAttribute('aria-label')")
        assert squeezed(label) == squeezed(scene.text)
        page.press("Home")
        page.press(" ")
        assert page.run("document.getElementById('play').getAttribute('aria-label')") == "Pause"
        deadline = time.monotonic() + 20
        while page.run(f"{slider}.value") < "2":
            assert time.monotonic() < deadline
        page.press(" ")
        assert page.run("document.getElementById('play').getAttribute('aria-label')") == "Play"
        page.press("n", text="n")
        assert page.run("document.getElementById('page').textContent") == "Tom said"
        unnamed = page.run(
            "[...document.querySelectorAll('button,input,select')].filter((e) =>"
            " !e.getAttribute('aria-label') && !e.closest('label')).length"
        )
        assert unnamed == 0
        assert page.messages == []


# Recordings of a terminal


def test_a_cast_is_a_recording_in_which_a_terminal_shows_the_text(
    reel: Reel, hostile: Reel
) -> None:
    for shown in (reel, hostile):
        header, *events = map(json.loads, EXPORTS[".cast"](shown).splitlines())
        assert (header["version"], header["width"], header["height"]) == (2, 80, 24)
        times = [second for second, _, _ in events]
        assert times == sorted(times)
        assert {kind for _, kind, _ in events} == {"o"}
        screen = pyte.Screen(80, 24)
        stream = pyte.Stream(screen)
        tape = shown.tape(shown.first())
        halfway = tape.timeline.starts[tape.calls // 2]
        pictures: list[str] = []
        for second, _, output in events:
            if second > halfway and not pictures:
                pictures.append("\n".join(screen.display))
            stream.feed(output)
        pictures.append("\n".join(screen.display))
        assert "░" in pictures[0]
        assert "░" not in pictures[1]
        assert f"step {tape.calls} of {tape.calls}" in pictures[1]
        assert not screen.cursor.hidden
        words = visible(shown.plain(shown.first())).split()
        plain = [word for word in words if word.isascii()]
        assert all(word in pictures[1] for word in plain)
        assert all(not ord(c) < 32 for c in "".join(screen.display))


def test_the_only_escape_codes_of_a_cast_are_its_own(hostile: Reel) -> None:
    sent = "".join(json.loads(line)[2] for line in EXPORTS[".cast"](hostile).splitlines()[1:])
    known = r"\x1b\[(?:\d+;1H|K|2J|\?25[lh]|[\d;]+m)"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.sub(known, "", sent))


def test_texts_of_a_cast_follow_each_other(reel: Reel) -> None:
    two = Reel(reel.header, [reel.first(), reel.first()], reel.tokenizer)
    lines = EXPORTS[".cast"](two).splitlines()
    once = json.loads(EXPORTS[".cast"](reel).splitlines()[-1])[0]
    assert json.loads(lines[-1])[0] == pytest.approx(2 * once, abs=0.01)
    assert b"text 2 of 2" in b"".join(lines)


# GIF and plain text


def test_a_gif_plays_as_long_as_the_run_and_its_masks_go(reel: Reel) -> None:
    scene = reel.scene(reel.first())
    data = EXPORTS[".gif"](reel)
    image = Image.open(BytesIO(data))
    assert image.info["loop"] == 0
    seconds, masks = 0.0, []
    palette = PALETTES["default"]
    for frame in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(frame)
        seconds += image.info["duration"] / 1000
        colors = {c: n for n, c in image.convert("RGB").getcolors(2**16) or []}
        early, late = (
            colors.get(tuple(bytes.fromhex(color[1:])), 0)
            for color in (palette.mask_diffusion, palette.mask_sequential)
        )
        masks.append((early, late))
    assert seconds == pytest.approx(scene.timeline.end, abs=0.1)
    assert masks[0][0] > 1000
    assert masks[0][1] < 100
    assert max(late for _, late in masks) > 500
    assert sum(masks[-1]) < 100
    assert len(data) < 2**20


def test_a_gif_has_room_for_so_many_rows(tiny_folder: Path, tiny_checkpoint: Checkpoint) -> None:
    ids = tiny_checkpoint.tokenizer.encode("\n" * MOST_ROWS)
    header = header_for(tiny_folder, tiny_checkpoint.config.vocab_size)
    long = Reel(header, [run_over(ids)], tiny_checkpoint.tokenizer)
    with pytest.raises(EsogenError, match="the text has 201 rows, and a .gif has room for 200"):
        EXPORTS[".gif"](long)


def test_without_a_font_of_the_machine_a_gif_is_drawn_with_that_of_pillow(
    tiny_folder: Path, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = _reel("Once upon", tiny_folder, tiny_checkpoint)
    usual = EXPORTS[".gif"](short)
    monkeypatch.setattr(gif, "_MONOSPACED", ())
    other = EXPORTS[".gif"](short)
    assert usual != other
    assert [Image.open(BytesIO(data)).size for data in (usual, other)] == [(720, 189)] * 2


def test_without_pillow_a_gif_says_what_to_install(
    reel: Reel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EsogenError, match=r"which is missing; pip install 'esogen\[gif\]'"):
        EXPORTS[".gif"](reel)


def test_plain_text_is_the_text(reel: Reel, hostile: Reel) -> None:
    assert EXPORTS[".txt"](reel).decode() == f"{STORY}\n"
    assert EXPORTS[".txt"](hostile).decode() == f"{HOSTILE}\n"


def test_what_the_command_offers_is_what_there_is() -> None:
    assert (*EXPORTS,) == SUFFIXES


def test_twice_the_speed_is_half_the_time(reel: Reel) -> None:
    def motion(scene: Scene) -> float:
        return scene.timeline.settled - LEAD

    fast = Reel(reel.header, reel.texts, reel.tokenizer, speed=2.0)
    usual = motion(reel.scene(reel.first()))
    assert motion(fast.scene(reel.first())) == pytest.approx(usual / 2)


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_text_that_is_all_given_is_shown_as_it_is(
    suffix: str, tiny_folder: Path, tiny_checkpoint: Checkpoint
) -> None:
    ids = tiny_checkpoint.tokenizer.encode("the cat")
    header = header_for(tiny_folder, tiny_checkpoint.config.vocab_size)
    for tokens in (ids, []):
        still = Reel(header, [run_over(tokens, given=len(tokens))], tiny_checkpoint.tokenizer)
        data = EXPORTS[suffix](still)
        assert suffix == ".gif" or not tokens or b"cat" in data
