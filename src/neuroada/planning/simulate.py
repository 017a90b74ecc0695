"""One training step on tensors without contents: how many bytes of what are alive when, for any architecture."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = ("weights", "adapter", "gradients", "optimiser", "activations", "logits", "working")
"""What memory is for: frozen or trained weights; what the method adds to them; gradients of parameters; optimiser
states; what the blocks' forward pass makes; the head and the loss, forward and backward; and all other intermediate
results (gradients of activations, recomputed blocks, temporaries)."""

Bytes = Counter[str]


@dataclass
class Memory:
    """Bytes alive, by part.

    peaks: by phase of the step, the parts at the moment when their sum was largest.
    largest: by phase of the step, each part when that part was largest.
    """

    peaks: dict[str, Bytes] = field(default_factory=dict)
    largest: dict[str, Bytes] = field(default_factory=dict)

    def peak(self) -> tuple[str, Bytes]:
        """The phase with the largest sum, and its parts."""
        return max(self.peaks.items(), key=lambda item: item[1].total())

    def most(self) -> Bytes:
        """Each part when it was largest; not all are at the same moment, so that their sum is no peak."""
        most: Bytes = Counter()
        for parts in self.largest.values():
            most |= parts
        return most


class Tracker(TorchDispatchMode):
    """Follows storages from birth to death, and where in the step that is.

    Phases: "start" (before the first block), "forward 0", "forward 1", ... (a block), "head" (forward and backward),
    "backward 1", ..., "end" (backward below the first block), "step". A block begins with the first operation that
    reads one of its tensors.
    """

    def __init__(self, granularity: int = 1) -> None:
        """granularity: the allocator hands out multiples of so many bytes."""
        super().__init__()
        self.granularity = granularity
        self.memory, self.live = Memory(), Counter[str]()
        self.phase, self.part, self.direction = "start", "activations", "forward"
        self._block: dict[int, int | None] = {}
        self._parts: dict[int, str] = {}
        self._deaths: dict[int, weakref.ref[Any]] = {}

    def know(self, tensor: Tensor, part: str, block: int | None) -> None:
        """A tensor of the model that is there already, in a block or outside all of them."""
        self._born(tensor, part)
        self._block.setdefault(_key(tensor), block)

    @contextmanager
    def setting_up(self, part: str) -> Iterator[None]:
        """What comes to be inside belongs to a part, and its peak does not count."""
        self.enter("start", part, "setting up")
        with self:
            yield
        self.memory = Memory()
        self.enter("start", "activations", "forward")

    def call_it(self, tensor: Tensor, part: str) -> None:
        """Count a tensor as another part from now on."""
        self._born(tensor, part)
        key, size = _key(tensor), self._size(tensor)
        self.live[self._parts[key]] -= size
        self.live[part] += size
        self._parts[key] = part
        self._note()

    def enter(self, phase: str, part: str, direction: str) -> None:
        """Go on to another phase of the step."""
        self.phase, self.part, self.direction = phase, part, direction

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs)):
            self._look(tensor)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._born(tensor, self.part)
        self._note()
        return result

    def _look(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key not in self._block or self.direction not in ("forward", "backward"):
            return
        block = self._block[key]
        if block is not None:
            part = "activations" if self.direction == "forward" else "working"
            self.enter(f"{self.direction} {block}", part, self.direction)
        elif self.phase.startswith("forward"):
            self.enter("head", "logits", self.direction)
        elif self.phase == "backward 0":
            self.enter("end", "working", self.direction)

    def _born(self, tensor: Tensor, part: str) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._deaths:
            return
        size = self._size(tensor)
        self.live[part] += size
        self._parts[key] = part

        def died(_: object) -> None:
            self.live[self._parts.pop(key)] -= size
            self._block.pop(key, None)
            del self._deaths[key]

        self._deaths[key] = weakref.ref(storage, died)

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.untyped_storage().nbytes() // self.granularity) * self.granularity

    def _note(self) -> None:
        self.memory.largest[self.phase] = self.memory.largest.get(self.phase, Counter()) | self.live
        if self.live.total() > self.memory.peaks.get(self.phase, Counter()).total():
            self.memory.peaks[self.phase] = Counter(self.live)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def materialise(model: nn.Module) -> Iterator[tuple[str, int, Tensor]]:
    """Under a FakeTensorMode, put fake CPU tensors in the place of a model's meta tensors, shared ones once.

    Yields:
        Name, id before, and tensor; a shared one once for each name.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for path, module in model.named_modules():
        registered: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in registered:
            for name, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    trained = tensor.requires_grad
                    made[id(tensor)] = (
                        tensor,
                        nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty,
                    )
                tensors[name] = made[id(tensor)][1]
                yield f"{path}.{name}", id(tensor), made[id(tensor)][1]


def train_step(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    trained: list[nn.Parameter],
    tracker: Tracker,
) -> Memory:
    """Forward, loss, backward and AdamW (fused, as Transformers' Trainer does by default), states already there.

    Args:
        model: of fake tensors, in training mode, known to the tracker.
        inputs: fake as well, with labels.
        trained: what the optimiser updates.
        tracker: not entered yet.
    """
    optimiser = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimiser.step()
    optimiser.zero_grad()
    for state in optimiser.state.values():
        for tensor in _tensors(state):
            tracker.call_it(tensor, "optimiser")

    def arrived(parameter: Tensor) -> None:
        if parameter.grad is not None:
            tracker.call_it(parameter.grad, "gradients")

    hooks = [parameter.register_post_accumulate_grad_hook(arrived) for parameter in trained]
    with tracker:
        loss = model(**inputs).loss
        tracker.direction = "backward"
        loss.backward()
        del loss
        tracker.enter("step", "working", "step")
        optimiser.step()
        optimiser.zero_grad()
    for hook in hooks:
        hook.remove()
    return tracker.memory


def extrapolated(few: Memory, more: Memory, blocks: int, wanted: int) -> Memory:
    """The memory of `wanted` equal blocks from that of `blocks`, at least 3, and of one more.

    One more block adds the same bytes at every moment of a phase, so that phases are affine in their number; between
    the second block and the last but one they are affine in the block, so that no peak hides there.
    """
    steps = wanted - blocks

    def affine(low: Mapping[str, Bytes], high: Mapping[str, Bytes]) -> dict[str, Bytes]:
        low, high = _from_both_ends(low, blocks), _from_both_ends(high, blocks + 1)
        return {
            phase: Counter({part: parts[part] + steps * (high[phase][part] - parts[part]) for part in PARTS})
            for phase, parts in low.items()
        }

    return Memory(affine(few.peaks, more.peaks), affine(few.largest, more.largest))


def _from_both_ends(phases: Mapping[str, Bytes], blocks: int) -> dict[str, Bytes]:
    """Phases of the two first blocks as 0 and 1, of the two last as -2 and -1, and those outside blocks."""
    named: dict[str, Bytes] = {}
    for phase, parts in phases.items():
        direction, _, block = phase.partition(" ")
        if not block:
            named[phase] = parts
            continue
        if int(block) < 2:
            named[f"{direction} {block}"] = parts
        if blocks - int(block) <= 2:
            named[f"{direction} {int(block) - blocks}"] = parts
    return named
