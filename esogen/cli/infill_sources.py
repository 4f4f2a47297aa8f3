"""Where a template comes from: arguments, a file, stdin, or a draft to be revised."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from esogen.cli.infill_run import Run
from esogen.cli.prompt import STDIN, opened_file, read_file, read_prompt, read_stdin
from esogen.cli.summary import Said
from esogen.cli.terminal import Console, is_terminal
from esogen.cli.word_diff import word_diff
from esogen.errors import UsageError

if TYPE_CHECKING:
    from esogen.generate.template import Tokens

_TEMPLATE_FILE = "a file that holds a template; one that is typed needs no --file"


@dataclass(frozen=True, slots=True)
class Around:
    """What is fixed besides the template, as in `LanguageModel.infill`."""

    fix: tuple[str, ...]
    starts_with: str
    ends_with: str
    length: int | None

    def tokens(self, run: Run, template: str) -> "Tokens":
        """The tokens of a template with these around it."""
        return run.lm.read_template(
            template,
            fix=self.fix,
            starts_with=self.starts_with,
            ends_with=self.ends_with,
            length=self.length,
        )

    def flags(self) -> Said:
        """The flags that say the same."""
        return [
            *(("--fix", pair) for pair in self.fix),
            *((("--starts-with", self.starts_with),) if self.starts_with else ()),
            *((("--ends-with", self.ends_with),) if self.ends_with else ()),
            *(() if self.length is None else (("-L", self.length),)),
        ]


@dataclass(frozen=True, slots=True)
class Given:
    """Where a template or a draft was said to be: the argument, or --file."""

    arguments: tuple[str, ...]
    file: Path | None

    def text(self, console: Console, *, needed: bool) -> str:
        """The template; empty where there is none, which `needed` forbids."""
        self._check()
        if self.file is not None:
            return read_file(self.file, _TEMPLATE_FILE)
        text = read_prompt(self.arguments, console, "TEMPLATE")
        if needed and not text:
            raise UsageError(
                "there is no TEMPLATE; write one, such as 'The [MASK:2] sat down.', pipe one in,"
                " or give --length with --starts-with and --ends-with"
            )
        return text

    def nothing(self, around: Around) -> bool:
        """Whether there is no template, and somebody at a terminal to write one."""
        streams = (sys.stdin, sys.stdout if is_terminal(sys.stdout) else sys.stderr)
        said = self.arguments or self.file or around.flags()
        return not said and all(map(is_terminal, streams))

    def template(self, console: Console, *, plain: bool) -> str:
        """What the editor begins with; with `plain`, stdin is left to the commands."""
        self._check()
        if self.file is not None:
            return read_file(self.file, _TEMPLATE_FILE)
        if plain and STDIN in self.arguments:
            raise UsageError("--plain reads commands from stdin; give TEMPLATE or --file instead")
        return read_prompt(self.arguments, console, "TEMPLATE") if self.arguments else ""

    def draft(self, console: Console, around: Around) -> str:
        """The text of the file that is named, or of stdin."""
        self._check()
        if around.flags():
            flag = around.flags()[0][0]
            raise UsageError(f"{flag} is for templates; --revise takes a draft: leave it out")
        if len(self.arguments) > 1:
            raise UsageError("--revise takes one draft; give the path of one file, or - for stdin")
        path = self.file or Path(*self.arguments)
        if (not self.arguments and self.file is None) or self.arguments == (STDIN,):
            return read_stdin(console, "draft")
        return read_file(path, "the file of a draft, or - for stdin")

    @contextmanager
    def lines(self, console: Console) -> Iterator[BinaryIO]:
        """The file, or stdin, to be read line by line."""
        if self.arguments not in ((), (STDIN,)):
            raise UsageError("--jsonl reads its templates from stdin or --file; leave TEMPLATE out")
        if self.file is not None:
            with opened_file(self.file, "a file with a template a line") as source:
                yield source
        else:
            if is_terminal(sys.stdin):
                console.say("type templates as JSON, one a line, then Ctrl-D on a line of its own")
            yield io.BytesIO() if sys.stdin is None else sys.stdin.buffer

    def said(self, around: Around) -> tuple[Said, str | None]:
        """The flags of a command line that fills the same lines, and its argument."""
        flags = [("--jsonl",), *around.flags()]
        return (flags, STDIN) if self.file is None else ([*flags, ("--file", self.file)], None)

    def _check(self) -> None:
        if self.file is not None and self.arguments:
            raise UsageError("--file and the argument exclude each other; give one of them")


@dataclass(frozen=True, slots=True)
class Written:
    """A template as it was written, and what is fixed around it."""

    text: str
    around: Around

    def read(self, run: Run) -> "Tokens":
        """The template in the tokens of the model."""
        return self.around.tokens(run, self.text)

    def said(self) -> tuple[Said, str | None]:
        """The flags of a command line that give it again, and its argument."""
        return self.around.flags(), self.text or None


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft whose least likely tokens become blanks."""

    text: str
    given: Given
    share: float
    keep: tuple[str, ...]

    def read(self, run: Run) -> "Tokens":
        """The draft in the tokens of the model, with its blanks."""
        return run.lm.revise_template(
            self.text, share=self.share, keep=self.keep, seed=run.settings.seed
        )

    def said(self) -> tuple[Said, str | None]:
        """The flags of a command line that give it again, and its argument: the draft's file."""
        keep = [("--keep", pattern) for pattern in self.keep]
        name = self.given.file or " ".join(self.given.arguments) or STDIN
        return [("--revise", self.share), *keep], str(name)

    def show(self, text: str, console: Console) -> None:
        """Tell what became of the draft, word by word."""
        console.show(word_diff(self.text, text, colored=console.colored))
