"""`esogen tokenize`: turn text files into tokens once, for many trainings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.checkpoint.resolve import TOKENIZER
from esogen.cli import training_options as options
from esogen.cli.terminal import Console
from esogen.errors import EsogenError, UsageError
from esogen.training.settings import Shape
from esogen.visible import counted

if TYPE_CHECKING:
    from esogen.checkpoint.tokenizer import Tokenizer

TextFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        show_default=False,
        help="UTF-8 text, plain or .xz; a line <|endoftext|> parts two texts.",
    ),
]


def tokenize(
    files: TextFiles,
    output: options.Output,
    *,
    vocab_size: options.VocabSize = None,
    tokenizer: options.TokenizerFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Turn text files into tokens once, for many trainings.

    DIR becomes tokenizer.json and, for every FILE, compressed pieces of at most 15 MB that
    `esogen train` takes in place of text: NAME-00.tokens.xz and so on.
    """
    console = Console.stderr(quiet=quiet)
    names = _names(files)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output is {output}, which holds something; choose another folder")
    console.status("starting ...")
    from esogen.training.data import encode, read_documents
    from esogen.training.run import given_tokenizer, new_tokenizer
    from esogen.training.token_files import write_token_files

    console.status("reading the text ...")
    documents = [list(read_documents([path])) for path in files]
    if tokenizer:
        learned = given_tokenizer(tokenizer, vocab_size)
    else:
        console.status("training a tokenizer ...")
        size = vocab_size or Shape().vocab_size
        learned = new_tokenizer([text for texts in documents for text in texts], size)
    try:
        _write_tokenizer(output, learned)
        for name, texts in zip(names, documents, strict=True):
            console.status(f"encoding {name} ...")
            encoded = encode(texts, learned)
            written = write_token_files(output, name, encoded, learned)
            size = sum(path.stat().st_size for path in written)
            console.say(
                f"{name}: {counted(len(encoded), 'text')}, {counted(len(encoded.ids_T), 'token')},"
                f" {encoded.bytes_D.sum() / len(encoded.ids_T):.2f} bytes a token;"
                f" {counted(len(written), 'file')}, {size:,} bytes"
            )
    except OSError as error:
        raise EsogenError(
            f"cannot write into {output}: {error.strerror or error}; make room, or choose another"
            " --output"
        ) from error


def _write_tokenizer(folder: Path, tokenizer: "Tokenizer") -> None:
    from esogen.atomic import replacing

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TOKENIZER) as scratch:
        scratch.write_text(tokenizer.to_json(), encoding="utf-8")


def _names(files: list[Path]) -> list[str]:
    """What the token files of each file are called: its name without endings."""
    names = [path.name.removesuffix(".xz").removesuffix(".txt") for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"two of the files are called {twice}; give one of them another name")
    return names
