"""`esogen train`: train a model on text files, or train one further."""

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import typer

from esogen.checkpoint.config_file import CardDefaults, read_config
from esogen.checkpoint.resolve import TOKENIZER, resolve
from esogen.cli import training_options as options
from esogen.cli.options import Device, keep_together
from esogen.cli.terminal import Console
from esogen.cli.training_progress import Progress, measured, shown
from esogen.errors import Interrupted, UsageError
from esogen.model.families import ALPHA_0, check_used
from esogen.training.settings import FAMILY, Shape, TrainingSettings
from esogen.visible import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from esogen.model.attention import Attend
    from esogen.model.config import Family, ModelConfig
    from esogen.model.network import Network
    from esogen.training.data import Rows
    from esogen.training.loop import Precision
    from esogen.training.objective import Forward
    from esogen.training.run import Run, Start


def train(
    ctx: typer.Context,
    files: options.Files,
    output: options.Output,
    *,
    layout: options.Layout = "whole",
    length: options.Length = None,
    vocab_size: options.VocabSize = None,
    tokenizer: options.TokenizerFile = None,
    valid: options.Valid = None,
    steps: options.Steps = 5000,
    alpha_0: options.Alpha0 = None,
    batch_size: options.BatchSize = 32,
    micro_batch: options.MicroBatch = None,
    learning_rate: options.LearningRate = 1e-3,
    warmup: options.Warmup = None,
    decay: options.Decay = "linear",
    weight_decay: options.WeightDecay = 0.0,
    clip: options.Clip = 1.0,
    ema: options.Ema = 0.9999,
    seed: options.Seed = 0,
    family: options.Family = None,
    init: options.Init = None,
    hidden_size: options.HiddenSize = None,
    blocks: options.Blocks = None,
    heads: options.Heads = None,
    cond_dim: options.CondDim = None,
    dropout: options.Dropout = None,
    block_size: options.BlockSize = None,
    bos: options.Bos = None,
    resume: options.Resume = False,
    minutes: options.Minutes = None,
    save_every: options.SaveEvery = 500,
    save_dtype: options.SaveDtype = "fp32",
    valid_every: options.ValidEvery = 1000,
    card_length: options.CardLength = None,
    card_steps: options.CardSteps = None,
    card_alpha_0: options.CardAlpha0 = None,
    card_schedule: options.CardSchedule = None,
    device: Device = "auto",
    dtype: options.Dtype = "auto",
    compiled: options.Compile = None,
    attention: options.Attention = "sdpa",
    quiet: options.Quiet = False,
) -> None:
    """Train a model on text files, or train one further.

    DIR becomes a model that `esogen sample -m DIR` reads: config.json, tokenizer.json and
    model.safetensors with the averaged weights. state.safetensors beside them is what --resume
    goes on from. Ctrl-C finishes the step in hand and saves.
    """
    keep_together(ctx, {"--valid-every": ("--valid",)})
    until = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
    shape = {
        "family": family,
        "vocab_size": vocab_size,
        "length": length,
        "hidden_size": hidden_size,
        "blocks": blocks,
        "heads": heads,
        "cond_dim": cond_dim,
        "dropout": dropout,
        "block_size": block_size,
    }
    card = CardDefaults(card_length, card_steps, card_alpha_0, card_schedule)
    console = Console.stderr(quiet=quiet)
    kind = _family(family, init, console)
    first_alpha = {"alpha_0": alpha_0[0] if alpha_0 else None}
    check_used(kind, {**shape, **first_alpha, "bos": bos})
    check_used(kind, asdict(card), prefix="card_")
    settings = TrainingSettings(
        steps=steps,
        alphas=tuple(alpha_0 or [ALPHA_0.get(kind, 1.0)]),
        batch_size=batch_size,
        micro_batch=micro_batch or min(batch_size, options.MICRO_BATCH),
        learning_rate=learning_rate,
        warmup=min(steps // 10, options.PUBLISHED_WARMUP) if warmup is None else warmup,
        decay=decay,
        weight_decay=weight_decay,
        clip=clip,
        ema=ema,
        layout=layout,
        seed=seed,
    )
    given = {name: value for name, value in shape.items() if value is not None}
    job = _Job(files, valid, output, settings, given, tokenizer, init, bos, resume=resume)
    place = _Place(device, dtype, save_dtype, compiled, attention)
    run = _prepare(job, card, place, console)
    with shown(steps, quiet=quiet, peak=place.peak()) as progress:
        progress.say(_begins(run))
        _train(run, place.precision(), progress, _Pace(save_every, valid_every, until))
        progress.say(_written(run))


def _family(family: "Family | None", init: str | None, console: Console) -> "Family":
    """The kind of model that is trained: what was asked for, or what --init is."""
    if init is None:
        return family or FAMILY
    return read_config(resolve(init, console).config).model.family  # a download is watched


@dataclass(frozen=True, slots=True)
class _Job:
    """What is trained: `shape` holds the sizes that were given, by the names of `Shape`."""

    files: list[Path]
    valid: Path | None
    folder: Path
    settings: TrainingSettings
    shape: Mapping[str, Any]
    tokenizer: Path | None
    init: str | None
    bos: bool | None
    resume: bool


@dataclass(frozen=True, slots=True)
class _Pace:
    """Steps between two savings, and between two validations; the moment to stop at."""

    save_every: int
    valid_every: int
    until: float


@dataclass(frozen=True, slots=True)
class _Place:
    """Where and how it runs, in the words of the flags; nothing of this is part of a state."""

    device_word: str
    dtype_word: str
    save_dtype_word: str
    compiled: bool | None
    attention: str

    def device(self) -> "torch.device":
        """The device trained on."""
        from esogen.checkpoint.placement import choose_device

        return choose_device(self.device_word)

    def precision(self) -> "Precision":
        """What each pass runs under: float32 weights, and bfloat16 arithmetic where wanted."""
        import torch

        from esogen.checkpoint.placement import choose_dtype

        device = self.device()
        word = "fp32" if (self.dtype_word, device.type) == ("auto", "cpu") else self.dtype_word
        if choose_dtype(word, device) != torch.bfloat16:
            return nullcontext
        return partial(torch.autocast, device.type, torch.bfloat16)

    def peak(self) -> float | None:
        """Operations a second that the device can reach in this precision, if that is known."""
        from esogen.checkpoint.placement import peak_flops

        return None if self.precision() is nullcontext else peak_flops(self.device())

    def save_dtype(self) -> "torch.dtype":
        """The precision of the written weights."""
        from esogen.checkpoint.placement import DTYPES

        return DTYPES[self.save_dtype_word]

    def forward(self, network: "Network") -> "Forward":
        """The calls of `network` that the losses are computed with."""
        import torch

        on_gpu = self.device().type == "cuda"
        compiled = on_gpu if self.compiled is None else self.compiled
        if self.attention == "flex" and not (on_gpu and compiled):
            raise UsageError(
                "--attention is 'flex', which is for a network compiled for a GPU;"
                " leave it out, or give --device cuda --compile"
            )
        if not compiled:
            return network
        # The number of hidden tokens differs from batch to batch; the shape of a batch does not.
        logits = torch.compile(network.logits, dynamic=True)
        hidden = torch.compile(network.hidden)
        return _Compiled(network.config, hidden, logits, sparse=self.attention == "flex")


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The compiled calls of a network; `sparse`: two halves attend by the block-sparse kernel."""

    config: "ModelConfig"
    whole: "Callable[..., Tensor]"
    logits: "Callable[[Tensor], Tensor]"
    sparse: bool

    def hidden(
        self,
        ids_BL: "Tensor",
        positions_BL: "Tensor",
        attend: "Attend",
        wanted: slice = slice(None),
    ) -> "Tensor":
        from esogen.model.block_sparse import block_sparse
        from esogen.model.two_halves import TwoHalves

        if self.sparse and isinstance(attend, TwoHalves):
            text = ids_BL.shape[1] - attend.masks
            attend = block_sparse(attend.masks, attend.given, text, ids_BL.device)
        return self.whole(ids_BL, positions_BL, attend, wanted)


def _prepare(job: _Job, card: CardDefaults, place: _Place, console: Console) -> "Run":
    """Read everything, and make the run ready for its next step."""
    console.status("starting ...")
    from esogen.training.data import encode, joined, read_documents, training_rows, windows
    from esogen.training.loop import Trainer
    from esogen.training.run import Run, claim
    from esogen.training.token_files import is_token_file, read_token_file

    claim(job.folder, resume=job.resume)
    device = place.device()
    console.status("reading the text ...")
    tokenised = [path for path in job.files if is_token_file(path)]
    documents = list(read_documents(path for path in job.files if path not in tokenised))
    held_out = list(read_documents([job.valid])) if job.valid else []
    beside = tokenised[0].with_name(TOKENIZER) if tokenised else None
    start = _start(job, beside, documents, device, console)
    length = _length(job, start.network.config)
    longest = start.network.config.model_length
    if card.length is not None and card.length > longest:
        raise UsageError(
            f"--card-length is {card.length}; it must be from 1 to {longest}, what the model reads"
        )
    console.status("encoding the text ...")
    texts = joined(
        [
            *(read_token_file(path, start.tokenizer) for path in tokenised),
            encode(documents, start.tokenizer),
        ]
    )
    rows = training_rows(texts, start.tokenizer.end_of_text, job.settings.layout, length)
    run = Run(
        Trainer(start.network, rows, job.settings, forward=place.forward(start.network)),
        job.folder,
        start.tokenizer,
        card if card != CardDefaults() else start.defaults,
        _notes(job, rows),
        place.save_dtype(),
        windows(held_out, start.tokenizer, length) if held_out else None,
    )
    if job.resume:
        run.resume()
    console.clear()
    return run


def _start(
    job: _Job, beside: Path | None, documents: list[str], device: "torch.device", console: Console
) -> "Start":
    """What the run begins with; `beside` is the tokenizer that lies by the first token file."""
    from esogen.training.run import from_model, from_nothing, given_tokenizer, new_tokenizer

    if job.init is not None:
        _refuse_beside_init(job)
        blocks, dropout = job.shape.get("blocks"), job.shape.get("dropout")
        return from_model(job.init, blocks, dropout, job.bos, device)
    shape = Shape(**job.shape)
    shape.config(shape.vocab_size)  # told before a tokenizer is trained
    kept = job.folder / TOKENIZER  # a resumed run goes on with the tokenizer it began with
    if given := job.tokenizer or (kept if job.resume and kept.is_file() else beside):
        tokenizer = given_tokenizer(given, job.shape.get("vocab_size"))
    else:
        console.status("training a tokenizer ...")
        tokenizer = new_tokenizer(documents, shape.vocab_size)
    bos = job.settings.layout == "whole" if job.bos is None else job.bos
    return from_nothing(shape, tokenizer, job.settings.seed, device, bos=bos)


def _refuse_beside_init(job: _Job) -> None:
    given = [*job.shape, *(["tokenizer"] if job.tokenizer else [])]
    chosen = ("length", "blocks", "dropout")
    wrong = [f"--{name.replace('_', '-')}" for name in given if name not in chosen]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} cannot be chosen beside --init, which brings its own;"
            " leave it out"
        )


def _length(job: _Job, config: "ModelConfig") -> int:
    length: int = job.shape.get("length", config.model_length)
    if length > config.model_length:
        raise UsageError(
            f"--length is {length}; the model of --init takes at most {config.model_length} tokens"
        )
    return length


def _notes(job: _Job, rows: "Rows") -> dict[str, object]:
    """What the model's card says of its training."""
    return {
        **job.settings.as_dict(),
        "files": [path.name for path in job.files],
        "rows": len(rows),
        "texts_too_long": rows.dropped,
        **({"init": _shared_name(job.init)} if job.init else {}),
    }


def _shared_name(model: str) -> str:
    """What a card may say of a model: of a folder its name alone, not where it lies."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _train(run: "Run", precision: "Precision", progress: Progress, pace: _Pace) -> None:
    """Train to the end, until the time is up or a signal comes; what was reached is saved."""
    steps, paused = run.trainer.settings.steps, False
    with _Signals() as signals:
        for report in run.trainer.run(precision):
            progress.step(report)
            if report.step < steps and report.step % pace.valid_every == 0:
                _validate(run, precision, progress, signals)
            paused = report.step < steps and time.monotonic() >= pace.until
            if signals.stopped or paused:
                break
            if report.step < steps and report.step % pace.save_every == 0:
                run.save()
        if not (signals.stopped or paused):
            _validate(run, precision, progress, signals)
        run.save()
    if signals.stopped:
        raise Interrupted(
            f"stopped after step {run.trainer.step} of {steps}; {run.folder} holds the state:"
            " add --resume to the same command to go on"
        )
    if paused:
        progress.say(
            f"the minutes are up after step {run.trainer.step} of {steps};"
            " add --resume to the same command to go on"
        )


def _validate(run: "Run", precision: "Precision", progress: Progress, signals: "_Signals") -> None:
    with signals.at_once():
        if found := run.validate(precision):
            progress.say(f"step {run.trainer.step} · {measured(found, run.config.family)}")


class _Signals:
    """Ctrl-C and SIGTERM: the first lets the step in hand finish, the next does not."""

    def __init__(self) -> None:
        self.stopped = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that the first signal ends, because nothing in it is worth waiting for."""
        self._at_once = True
        try:
            yield
        except KeyboardInterrupt:
            self.stopped = True
        finally:
            self._at_once = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again, self.stopped = self.stopped, True
        if again or self._at_once:
            raise KeyboardInterrupt


def _begins(run: "Run") -> str:
    rows, trainer = run.trainer.rows, run.trainer
    weights = sum(parameter.numel() for parameter in trainer.parameters.values())
    too_long = f" ({counted(rows.dropped, 'longer text')} left out)" if rows.dropped else ""
    length = rows.ids_RL.shape[1]
    return (
        f"training {weights:,} weights on {counted(len(rows), 'row')} of {length} tokens"
        f"{too_long} from step {trainer.step} to {trainer.settings.steps}"
    )


def _written(run: "Run") -> str:
    bare = len(run.folder.parts) == 1  # a bare name might be that of a built-in model
    named = f"./{run.folder}" if bare else run.folder
    return (
        f"wrote {run.folder}: config.json, tokenizer.json, model.safetensors, state.safetensors;"
        f" try: esogen sample -m {named}"
    )
