"""Calls through a KV cache, recorded once and replayed where launching one can cost the most.

On a GPU a narrow call is over before Python has launched the next. What is recorded is the blocks
of one call of so many tokens. It reads its tokens, their positions, the cache's lengths and who
sees whom among the tokens from buffers of its own, so a replay is the same call at another place,
whatever family or loop it is made for. A call that is a little narrower is padded: what pads it
stands behind its own tokens, which do not see it, and is never committed.

Shapes: B rows still running, L tokens of a call, D model width.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from esogen.model.attention import SDPA, Attend, Kernels, StepKernel
from esogen.model.network import EVERYTHING, Network

LEAST_CALLS = 16
"""Calls to come that a recording must serve to be made. A guess: one costs about as much as the two
calls that it is made from, and what a replay saves is most of a call at batch 1, nothing at a large
one.
"""

UNFORESEEN = 3
"""The same of calls that have been, where nobody knows what is to come: by then a recording would
have cost as much as they did."""

MOST_TOKENS = 2**13
"""Of a call that is recorded, in all rows: a wider one takes a GPU longer than launching it takes.
A guess too."""

MOST_PADDING = 1.5
"""How many times wider than its tokens a call may become by padding."""

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


class Cache(Protocol):
    """What calls go through: a `KVCache`, a `SharedPrefix`, or `WholeText`."""

    @property
    def lengths_B(self) -> NDArray[np.int64]:
        """Committed tokens of each row."""
        ...

    @property
    def level(self) -> int | None:
        """The same as one number, if all rows have as many."""
        ...

    @property
    def capacity(self) -> int:
        """Places in a row."""
        ...

    @property
    def device(self) -> torch.device:
        """Where keys and values are."""
        ...

    def attend(self, width: int, seen_BLL: Tensor | None = None) -> Attend:
        """The attention of one call, behind what stands."""
        ...

    def attend_at(
        self, stands_B: Tensor, kernel: StepKernel, seen_BLL: Tensor | None = None
    ) -> Attend:
        """The attention of one call that can be recorded, behind `stands_B` tokens."""
        ...

    def commit(self, count_B: int | NDArray[np.int64]) -> None:
        """Make the first `count_B` tokens of the last call permanent."""
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        ...


class Through:
    """Calls of `network` through `cache`, which commits what stands afterwards.

    Where `kernels` have one for recorded calls, frequent widths are recorded and replayed: of the
    calls to come, whose widths are `ahead` if they are known; else of those that have been.
    """

    def __init__(
        self,
        network: Network,
        cache: Cache,
        kernels: Kernels = SDPA,
        ahead: Sequence[int] | None = None,
    ) -> None:
        self.cache, self._network = cache, network
        self._new: Callable[..., _Recorded] | None = None
        if kernels.step:
            self._new = partial(_Recorded, network, cache, kernels.step, CudaGraphs(cache.device))
        self._ahead, self._made = ahead, 0
        self._begin()

    def __call__(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor,
        seen_BLL: Tensor | None = None,
        wanted: slice = EVERYTHING,
    ) -> Tensor:
        """`Network.hidden` of new tokens, `[B, L, D]`, which are causal unless told who sees whom.

        `seen_BLL`: bool, `[B or 1, L, L]`; every token sees itself.
        """
        width = ids_BL.shape[1]
        recorded = self._recording(width, told=seen_BLL is not None)
        self._made += 1
        if recorded is None:
            attend = self.cache.attend(width, seen_BLL)
            return self._network.hidden(ids_BL, positions_BL, attend, wanted)
        hidden_BLD = recorded(ids_BL, positions_BL, seen_BLL)
        return hidden_BLD[:, :width][:, wanted].clone()  # the next replay writes over it

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these; what was recorded had more of them."""
        self.cache.keep(kept)
        self._begin()

    def _begin(self) -> None:
        """Nothing is recorded; judged is what is to come, if it is known."""
        self._most = MOST_TOKENS // max(1, len(self.cache.lengths_B))
        self._recorded: dict[tuple[int, bool], _Recorded] = {}
        self._met: dict[bool, list[int]] = {False: [], True: []}
        coming = () if self._ahead is None else self._ahead[self._made :]
        self._add((each for each in coming if each <= self._most), LEAST_CALLS, told=False)

    def _recording(self, width: int, *, told: bool) -> "_Recorded | None":
        """The recorded call that this one is to be, if any."""
        if self._new is None:
            return None
        found = self._fitting(width, told=told)
        if found is None and self._ahead is None and width <= self._most:
            self._met[told].append(width)
            self._add(self._met[told], UNFORESEEN, told=told)
            found = self._fitting(width, told=told)
        return found

    def _fitting(self, width: int, *, told: bool) -> "_Recorded | None":
        """The narrowest recorded call that one of this width can be padded to."""
        room = self.cache.capacity - int(self.cache.lengths_B.max())
        fitting = [
            each
            for each, kind in self._recorded
            if kind == told and each <= room and _serves(each, width)
        ]
        return self._recorded[min(fitting), told] if fitting else None

    def _add(self, widths: Iterable[int], least: int, *, told: bool) -> None:
        """Have calls recorded that serve at least so many calls of these widths each."""
        if self._new is None:
            return
        for width in worth_recording(widths, least):
            self._recorded[width, told] = self._new(width, told=told)
            self._met[told] = [each for each in self._met[told] if not _serves(width, each)]


class _Recorded:
    """One call of a fixed width: its buffers, and what was recorded over them.

    `told`: who sees whom among its tokens is handed over; else they are causal.
    """

    def __init__(
        self,
        network: Network,
        cache: Cache,
        kernel: StepKernel,
        record: Record,
        width: int,
        *,
        told: bool,
    ) -> None:
        self._network, self._cache, self._kernel, self._record = network, cache, kernel, record
        rows, device = len(cache.lengths_B), cache.device
        self._ids_BL = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self._positions_BL = torch.zeros_like(self._ids_BL)
        self._stands_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._itself_LL = torch.eye(width, dtype=torch.bool, device=device)
        self._seen_BLL = self._itself_LL.repeat(rows, 1, 1) if told else None
        self._warm = False
        self._replay: Run | None = None

    def __call__(self, ids_BL: Tensor, positions_BL: Tensor, seen_BLL: Tensor | None) -> Tensor:
        """Hidden states of these tokens, and of what pads them.

        The first time the call runs as it is, which loads and compiles what it needs; then it is
        recorded.
        """
        width = ids_BL.shape[1]
        self._ids_BL[:, :width], self._positions_BL[:, :width] = ids_BL, positions_BL
        self._stand()
        if self._seen_BLL is not None and seen_BLL is not None:
            spare = self._ids_BL.shape[1] - width
            # What pads sees itself: attention over nothing is no number, and would be written.
            self._seen_BLL.copy_(pad(seen_BLL, (0, spare, 0, spare)) | self._itself_LL)
        if self._warm and self._replay is None:
            self._replay = self._record(self._run)
        self._warm = True
        return (self._replay or self._run)()

    def _stand(self) -> None:
        """Tell the device how much stands; where that is one number, without waiting for it."""
        if self._cache.level is None:
            self._stands_B.copy_(torch.from_numpy(self._cache.lengths_B))
        else:
            self._stands_B.fill_(self._cache.level)

    def _run(self) -> Tensor:
        attend = self._cache.attend_at(self._stands_B, self._kernel, self._seen_BLL)
        return self._network.hidden(self._ids_BL, self._positions_BL, attend)


def _serves(recorded: int, width: int) -> bool:
    """Whether a call may be padded to a recorded one."""
    return width <= recorded <= MOST_PADDING * width


def worth_recording(widths: Iterable[int], least: int) -> list[int]:
    """Widths to record for calls of these widths: each serves `least` of them at least.

    From the widest down, calls gather until there are enough of them; those that are too wide for
    the ones that follow are given up.
    """
    chosen: list[int] = []
    gathered: Counter[int] = Counter()
    for width, calls in sorted(Counter(widths).items(), reverse=True):
        gathered[width] = calls
        gathered = Counter({w: n for w, n in gathered.items() if _serves(w, width)})
        if gathered.total() >= least:
            chosen.append(max(gathered))
            gathered.clear()
    return chosen
