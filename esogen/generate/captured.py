"""Steps that are recorded once and replayed, because on a GPU launching one can cost the most.

What is recorded is the network's part of a step, for one number of tokens. It reads its tokens,
their positions and the cache's lengths from buffers of its own, so a replay is the same step at
another place. Steps that are a little narrower are padded: the masks of later steps come behind
their own, which nothing before them sees and which are never committed.

Shapes: B rows still running, L tokens of a step, K masks of it, D model width.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.denoise import Calls, Progress
from esogen.generate.plan import Plan
from esogen.model.attention import StepKernel
from esogen.model.cache import KVCache, StepAttend
from esogen.model.network import Network

LEAST_STEPS = 16
"""Steps that a recording must serve to be made. A guess: one costs about as much as the two steps
that it is made from, and what a replay saves is most of a step at batch 1, nothing at a large one.
"""

MOST_PADDING = 1.5
"""How many times wider than its tokens a step may become by padding."""

Run = Callable[[], Tensor]
Record = Callable[[Run], Run]
"""Makes something of a function that, called, does the same again to the same tensors."""


class CudaGraphs:
    """Records as CUDA graphs, which share their memory: one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Record `run`, which has run before: nothing may be compiled or loaded meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=_side_stream(self._device),
                capture_error_mode="thread_local",  # other threads may use the GPU
            ),
        ):
            out = run()

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return out

        return replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream of each device to record on: torch keeps memory for every stream it has used."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CapturedCalls:
    """`plain` calls through `cache`, whose frequent widths are recorded and replayed.

    All rows stand at one length, and a call is made for each step of `plan`, in order. The first
    call is never recorded: it is wider than the others and begins with the model's bos token. A
    call feeds what was decided last and, `with_masks`, this step's masks; its last rows decide.
    """

    def __init__(
        self,
        plain: Calls,
        network: Network,
        cache: KVCache,
        plan: Plan,
        *,
        kernel: StepKernel,
        record: Record,
        with_masks: bool = True,
    ) -> None:
        self._plain, self._with_masks = plain, with_masks
        self._network, self._cache, self._kernel, self._record = network, cache, kernel, record
        fresh_S = np.concatenate([[plan.given], plan.counts_S[:-1]])
        self._widths_S, self._step = fresh_S + with_masks * plan.counts_S, 0
        self._windows: dict[int, _Window] | None = None

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count` masks."""
        width = fresh + self._with_masks * count
        window = self._window(width) if self._step else None
        self._step += 1
        if window is None:
            return self._plain(progress, decided, fresh, count)
        hidden_BLD = window(progress, decided - fresh)
        self._cache.commit(fresh)
        return hidden_BLD[:, width - count : width].clone()  # the next replay writes over it

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these; what was recorded had more of them."""
        self._plain.keep(kept)
        self._windows = None

    def _window(self, width: int) -> "_Window | None":
        """The narrowest recorded step that this one can be padded to."""
        if self._windows is None:
            wanted = worth_recording(self._widths_S[self._step :].tolist())
            make = partial(_Window, self._network, self._cache, self._kernel, self._record)
            self._windows = {width: make(width) for width in wanted}
        room = self._cache.capacity - int(self._cache.lengths_B[0])
        widest = min(room, int(MOST_PADDING * width))
        fitting = [each for each in self._windows if width <= each <= widest]
        return self._windows[min(fitting)] if fitting else None


class _Window:
    """One step of a fixed width: its buffers, and what was recorded over them."""

    def __init__(
        self, network: Network, cache: KVCache, kernel: StepKernel, record: Record, width: int
    ) -> None:
        self._network, self._cache, self._kernel, self._record = network, cache, kernel, record
        rows, device = len(cache.lengths_B), cache.device
        self._ids_BL = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self._positions_BL = torch.zeros_like(self._ids_BL)
        self._stands_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._warm = False
        self._replay: Run | None = None

    def __call__(self, progress: Progress, first: int) -> Tensor:
        """Hidden states `[B, L, D]` of the tokens from sorted index `first` on.

        The first time the step runs as it is, which loads and compiles what it needs; then it is
        recorded.
        """
        positions_BL = progress.order_BL[:, first : first + self._ids_BL.shape[1]]
        self._positions_BL.copy_(positions_BL)
        torch.gather(progress.canvas_BL, 1, positions_BL, out=self._ids_BL)
        self._stands_B.fill_(int(self._cache.lengths_B[0]))
        if self._warm and self._replay is None:
            self._replay = self._record(self._step)
        self._warm = True
        return (self._replay or self._step)()

    def _step(self) -> Tensor:
        width = self._ids_BL.shape[1]
        attend = StepAttend(self._cache, self._stands_B, width, self._kernel)
        return self._network.hidden(self._ids_BL, self._positions_BL, attend)


def worth_recording(widths: Iterable[int]) -> list[int]:
    """Widths to record for steps of these widths: each serves `LEAST_STEPS` of them at least.

    From the widest down, steps gather until there are enough of them; those that are too wide for
    the ones that follow are given up.
    """
    chosen: list[int] = []
    gathered: Counter[int] = Counter()
    for width, steps in sorted(Counter(widths).items(), reverse=True):
        gathered[width] = steps
        gathered = Counter({w: n for w, n in gathered.items() if w <= MOST_PADDING * width})
        if gathered.total() >= LEAST_STEPS:
            chosen.append(max(gathered))
            gathered.clear()
    return chosen
