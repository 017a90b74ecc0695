"""One of the processes that train together; torchrun starts it."""

import faulthandler
import json
import os
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import DistributedType, PartialState
from peft import set_peft_model_state_dict
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback

from neuroada import NeuroAdaLinear
from neuroada.errors import WeightError
from neuroada.layers.saved_inputs import InputGroup
from neuroada.ops.sparse_delta import is_held, swap
from neuroada.training.callbacks import HoldSupports
from neuroada.training.train import train as train_recipe
from specimens import same_bits

from .courses import ROWS, WEIGHTS, Course, adapted, arguments, courses, loop, recipe_of, regrowing, train, trainer

FSDP = {"fsdp": True, "fsdp_config": {"version": 2}, "use_cpu": False, "per_device_train_batch_size": 2}
DDP = {"ddp_backend": "gloo", "per_device_train_batch_size": 2}
PREFIX = "base_model.model."


class Report:
    """What the tests read of a training, written by the first process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, {}

    def write(self, **found: object) -> None:
        self.found |= found
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "report.json").write_text(json.dumps(self.found))


def everywhere(value: Any) -> list[Any]:
    """What each process has found."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def shard_on_the_cpu() -> None:
    """Let Accelerate shard here as it does on GPUs.

    Accelerate 1.15 takes FSDP into account only for kinds of devices that `AcceleratorState` lists, and MULTI_CPU is
    not among them: on CPUs it falls back to DistributedDataParallel without a word. These processes say that they are
    GPUs, while their device is the CPU and their backend gloo; all that follows is the code that GPUs run.
    """
    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def changed_base_weights(made: Trainer, course: Course) -> list[str]:
    """Names of base weights whose bits are not the pretrained ones; known to the first process alone."""
    state = made.accelerator.get_state_dict(made.model)
    if dist.get_rank() != 0:
        return []
    found = {name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for name, tensor in state.items()}
    with safe_open(Path(course.model) / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name in found]  # noqa: SIM118 (it is no mapping)
        absent = {name for name in found if "neuroada_" not in name and "neat_" not in name} - set(names)
        assert absent <= {"lm_head.weight"}, absent  # tied to the embedding, and stored once
        return [name for name in names if not same_bits(found[name], file.get_tensor(name).float())]


class Unions:
    """Counts how often layers that share an input look for the columns that they read, and by how many groups."""

    def __init__(self) -> None:
        self.found: Counter[int] = Counter()
        unite = InputGroup._unite

        def counted(group: InputGroup, width: int):
            self.found[id(group)] += 1
            return unite(group, width)

        InputGroup._unite = counted

    def times(self) -> list[int]:
        """Without repetition."""
        return sorted(set(self.found.values()))


class Lifts:
    """Counts how often a held support had to be taken out because another one was asked for."""

    def __init__(self) -> None:
        self.found = 0
        lifted = swap._lifted

        def counted(weight, held, compute):
            self.found += held is not None
            return lifted(weight, held, compute)

        swap._lifted = counted


class Held(TrainerCallback):
    """After each step: whether all supports are in the weights, and how often one had to be taken out so far."""

    def __init__(self) -> None:
        self.found: list[tuple[bool, int]] = []
        self.lifts = Lifts()

    def on_step_end(self, args, state, control, model, **kwargs):
        layers = [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]
        self.found.append((all(is_held(layer.base_layer.weight) for layer in layers), self.lifts.found))


def ddp(folder: Path, given: list[Course]) -> None:
    """Through Trainer; then a bare DistributedDataParallel; then supports that differ."""
    for course in given:
        unions, held = Unions(), Held()
        with ExitStack() as context:
            made = train(course, folder / course.name, HoldSupports(context), held, **DDP)
            wrapped = isinstance(made.model_wrapped, DistributedDataParallel)
        report = Report(folder / course.name)
        report.write(wrapped=wrapped, held=everywhere(held.found), unions=everywhere(unions.times()))
        report.write(changed=changed_base_weights(made, course))
    by_recipe(folder / "recipe", given[-1])
    bare_ddp(folder / "bare", given[-1])
    other_choices(folder / "other", given[-1])
    regrown(folder / "regrown", given[-1])


def bare_ddp(folder: Path, course: Course) -> None:
    """A loop of a user's own, without Trainer or Accelerate."""
    unions, model = Unions(), adapted(course)
    replicas = DistributedDataParallel(model, find_unused_parameters=False)
    loop(model, course, replicas, *place())
    Report(folder).write(unions=everywhere(unions.times()), sent=indices_sent(replicas))
    if dist.get_rank() == 0:
        model.save_pretrained(str(folder / "adapter"))


def by_recipe(folder: Path, course: Course) -> None:
    """As `neuroada train` does."""
    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    recipe = recipe_of(course, folder, ROWS // dist.get_world_size())
    dist.barrier()
    train_recipe(recipe, folder / "run", Console(quiet=True))


def place() -> tuple[int, int]:
    """(rank, world) of this process."""
    return dist.get_rank(), dist.get_world_size()


def indices_sent(replicas: DistributedDataParallel) -> int:
    """How many buffers of integers the replicas would send to each other before a forward pass."""
    return sum(not buffer.is_floating_point() for buffer in replicas.modules_buffers)


def other_choices(folder: Path, course: Course) -> None:
    """Each process chooses at random with a seed of its own."""
    config = course.config | {"selection": "random", "seed": dist.get_rank()}
    model = adapted(replace(course, config=config))
    replicas = DistributedDataParallel(model)
    try:
        loop(model, course, replicas, *place())
        message = ""
    except WeightError as error:
        message = str(error)
    Report(folder).write(messages=everywhere(message))


def regrown(folder: Path, course: Course) -> None:
    """Inputs are dropped and grown half-way, each process with its own part of the calibration batches."""
    made = train(course, folder, regrowing(course, *place()), **DDP)
    Report(folder).write(
        indices=everywhere([tensor.tolist() for tensor in made.model.buffers() if tensor.dtype == torch.int32]),
        changed=changed_base_weights(made, course),
    )


def fsdp(folder: Path, given: list[Course]) -> None:
    """Through Trainer and Accelerate; then with weights in one process only; resumed; and by torch's own function."""
    shard_on_the_cpu()
    for course in given:
        made = train(course, folder / course.name, **FSDP)
        report = Report(folder / course.name)
        report.write(**shards(made.model), changed=changed_base_weights(made, course))
    tiny = given[-1]
    loaded_by_one(folder / "loaded-by-one", tiny)
    resumed(folder / "resumed", tiny)
    saved_without_gathering(folder / "ungathered", tiny)
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch --use_fsdp` does
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    by_recipe(folder / "recipe", tiny)
    bare_fsdp(folder / "bare", tiny)


def shards(model: nn.Module) -> dict[str, int]:
    """How many modules and deltas are sharded, and how many deltas there are."""
    deltas = [parameter for name, parameter in model.named_parameters() if "neuroada_deltas" in name]
    return {
        "units": sum(isinstance(module, FSDPModule) for module in model.modules()),
        "deltas": len(deltas),
        "sharded_deltas": sum(isinstance(delta, DTensor) for delta in deltas),
    }


def loaded_by_one(folder: Path, course: Course) -> None:
    """`cpu_ram_efficient_loading`, which `accelerate launch --use_fsdp` turns on unless told otherwise.

    The other processes have a model of the same shapes with anything in its weights, and Accelerate sends them those of
    the first. (Transformers 5.23 loads them in all processes all the same.)
    """
    given = FSDP | {"fsdp_config": {"version": 2, "cpu_ram_efficient_loading": True}}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    options = arguments(course, folder, **given)
    model = adapted(course, empty=dist.get_rank() != 0)
    made = trainer(course, model, options)
    made.train()
    made.save_model(str(folder / "adapter"))
    dist.barrier()

    options = arguments(course, folder, **(given | {"max_steps": 1, "learning_rate": 0.0}))
    other = replace(course, config=course.config | {"selection": "reverse"})
    model = adapted(other, empty=dist.get_rank() != 0)
    set_peft_model_state_dict(model, load_file(folder / "adapter" / WEIGHTS))
    made = trainer(course, model, options)
    made.train()
    made.save_model(str(folder / "again" / "adapter"))


def resumed(folder: Path, course: Course) -> None:
    """A checkpoint half-way, and a second training from there."""
    course, half = replace(course, optimiser="adamw_torch"), course.steps // 2
    train(course, folder / "whole", **(FSDP | {"save_strategy": "steps", "save_steps": half}))
    checkpoint = folder / "whole" / "checkpoints" / f"checkpoint-{half}"
    train(course, folder, resume=str(checkpoint), **FSDP)


def saved_without_gathering(folder: Path, course: Course) -> None:
    """`save_pretrained` on a sharded model, as one would without Trainer."""
    options = arguments(course, folder, **FSDP)
    made = trainer(course, adapted(course), options)
    made.train()
    try:
        made.model.save_pretrained(str(folder / "adapter"))
        message = ""
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    Report(folder).write(message=message)
    dist.barrier()


def bare_fsdp(folder: Path, course: Course) -> None:
    """torch's `fully_shard` on each block and on the model, without Accelerate."""
    model = adapted(course)
    for block in model.get_base_model().model.layers:
        fully_shard(block)
    fully_shard(model)
    loop(model, course, model, *place())
    state: dict[str, Tensor] = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    if dist.get_rank() == 0:
        model.save_pretrained(str(folder / "adapter"), state_dict=state)
    Report(folder).write(**shards(model))


def main() -> None:
    """`worker KIND FOLDER SECONDS`."""
    kind, folder, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    faulthandler.dump_traceback_later(seconds, exit=True)
    torch.set_num_threads(1)
    {"ddp": ddp, "fsdp": fsdp}[kind](folder, courses(folder / "courses.json"))
    dist.barrier()
    dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
