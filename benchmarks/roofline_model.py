"""How long a card takes for a recorded step, at the least.

An op takes as long as the slower of two things: its FLOP at the card's rate of matrix products, and
its bytes at the card's rate of memory (Williams et al. 2009, "Roofline"). Ops follow each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from roofline_ops import POINTWISE, REDUCTION, Access, Op
from roofline_trace import Trace


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by published figures.

    Attributes:
        half, single: FLOP/s of dense products with 16 and 32 bits that add up in float32; the
            latter without tensor cores, because PyTorch multiplies float32 matrices so.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        source: of the figures.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: float
    source: str


CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 19.5e12, 2.039e12, 80e9, "NVIDIA's datasheet of the A100 80GB SXM"),
        Card("H100", 989.4e12, 66.9e12, 3.35e12, 80e9, "NVIDIA's datasheet of the H100 SXM"),
        Card("H200", 989.4e12, 66.9e12, 4.8e12, 141e9, "NVIDIA's datasheet of the H200 SXM"),
        Card("RTX 4090", 165.2e12, 82.6e12, 1.008e12, 24e9, "NVIDIA's Ada whitepaper"),
    )
}
PRODUCTS_REACHED = 790e12 / CARDS["H200"].half
"""The share of the published rate that a large bfloat16 product reached on an H200 (790 TFLOP/s).
The model takes the same share on all cards, and for float32."""
MEMORY_REACHED = 4.3e12 / CARDS["H200"].bandwidth
"""The same for a copy of a large tensor on an H200 (4.3 TB/s)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of some ops on a card.

    Attributes:
        seconds: that they take at the least.
        flops, bytes, kernels: what they do, move, and how many they are.
        bound_by_memory: seconds of those ops that wait for memory.
    """

    seconds: float
    flops: int
    bytes: int
    kernels: int
    bound_by_memory: float


def cost(ops: Iterable[Op], card: Card, launch: float = 0.0) -> Cost:
    """What ``ops`` cost on ``card``, one after the other.

    Args:
        ops: of a trace, or fused ones.
        card: see :data:`CARDS`.
        launch: seconds that each op takes at the least.
    """
    seconds = bound = 0.0
    flops = moved = kernels = 0
    for op in ops:
        rate = PRODUCTS_REACHED * (card.half if op.bits == 16 else card.single)
        products, memory = op.flops / rate, op.bytes / (card.bandwidth * MEMORY_REACHED)
        seconds += max(products, memory, launch)
        bound += memory if memory > max(products, launch) else 0.0
        flops, moved, kernels = flops + op.flops, moved + op.bytes, kernels + 1
    return Cost(seconds, flops, moved, kernels, bound)


def by(ops: Iterable[Op], key: Callable[[Op], str]) -> dict[str, list[Op]]:
    """The ops in groups, in the order in which the groups begin."""
    groups: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        groups[key(op)].append(op)
    return dict(groups)


def fused(trace: Trace) -> list[Op]:
    """The ops of a step after a simple compiler has fused them.

    A pointwise op or a reduction joins the kernel that makes one of its inputs, if that kernel is
    made of such ops on tensors of the same size, and if nothing else that the op needs depends on
    the kernel. An op that reads the result of a reduction begins a new kernel. A kernel reads each
    tensor from outside once, and writes only what is read outside or lives on after the step.
    Convolutions, products and all other ops stay alone. Nothing is computed twice.
    """
    kernels = _Kernels()
    for op in trace.ops:
        kernels.add(op)
    last = {one.storage: one.version for op in trace.ops for one in op.writes}
    needed = {(storage, last[storage]) for storage in trace.kept if storage in last}
    for number, members in enumerate(kernels.members):
        reads = {one[:2] for op in members for one in op.reads}
        needed |= {key for key in reads if kernels.maker.get(key) != number}
    return [_as_one(members, needed) for members in kernels.members]


class _Kernels:
    """Kernels that grow op by op."""

    def __init__(self) -> None:
        self.members: list[list[Op]] = []
        self.maker: dict[tuple[int, int], int] = {}  # of each storage and version
        self._reduced: set[tuple[int, int]] = set()
        self._before: list[int] = []  # kernels that each depends on, one bit for each

    def add(self, op: Op) -> None:
        """Puts ``op`` into a kernel, or a new one."""
        needs = [one[:2] for one in op.reads]
        number = self._joined(op, needs)
        if number is None:
            number = len(self.members)
            self.members.append([])
            self._before.append(0)
        self.members[number].append(op)
        for need in needs:
            maker = self.maker.get(need)
            if maker is not None and maker != number:
                self._before[number] |= self._before[maker] | 1 << maker
        for one in op.writes:
            self.maker[one[:2]] = number
            if op.kind == REDUCTION:
                self._reduced.add(one[:2])

    def _joined(self, op: Op, needs: Sequence[tuple[int, int]]) -> int | None:
        if op.kind not in (POINTWISE, REDUCTION):
            return None
        makers = {self.maker[need] for need in needs if need in self.maker}
        for number in sorted(makers, reverse=True):
            first = self.members[number][0]
            if first.kind not in (POINTWISE, REDUCTION) or first.size != op.size:
                continue
            own = [need for need in needs if self.maker.get(need) == number]
            others = makers - {number}
            if self._reduced.isdisjoint(own) and not any(
                self._before[other] >> number & 1 for other in others
            ):
                return number
        return None


def _as_one(members: Sequence[Op], needed: set[tuple[int, int]]) -> Op:
    """A kernel as an op; ``needed`` are the tensors that are read elsewhere or live on."""
    first = members[0]
    if len(members) == 1:
        return first
    reads: dict[tuple[int, int], Access] = {}
    made: dict[tuple[int, int], Access] = {}
    for op in members:
        for one in op.reads:
            if one[:2] not in made:
                known = reads.get(one[:2], one)
                reads[one[:2]] = max(known, one, key=lambda access: access.bytes)
        made |= {one[:2]: one for one in op.writes}
    return Op(
        name=" + ".join(dict.fromkeys(op.name for op in members)),
        part=first.part,
        phase=first.phase,
        kind=POINTWISE,
        flops=0,
        bits=first.bits,
        size=first.size,
        reads=tuple(reads.values()),
        writes=tuple(one for key, one in made.items() if key in needed),
    )
