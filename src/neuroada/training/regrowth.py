"""Drop and grow in a recipe: whether it can be done, what the header says of it, and the callback that does it."""

from transformers import TrainerCallback

from neuroada.errors import ConfigError
from neuroada.recipe.schema import RegrowthSection
from neuroada.run_folder.folder import RunFolder
from neuroada.tuners import RegrowCallback
from neuroada.tuners.processes import is_sharded


def check_regrowth(asked: RegrowthSection) -> None:
    """Raise ConfigError if a recipe asks for it where it cannot be done."""
    if asked.every is not None and is_sharded():
        raise ConfigError(
            f"regrowth.every={asked.every} under FSDP",
            "deltas are sharded over the processes, so that none has a whole neuron's",
            "Train with DistributedDataParallel, or leave regrowth.every out",
        )


def regrowth_text(asked: RegrowthSection, steps: int) -> str | None:
    """How often a training of so many steps will regrow, and how; None where it was not asked for."""
    if asked.every is None:
        return None
    times = sum(step < asked.stop_after * steps for step in range(asked.every, steps + 1, asked.every))
    how = f"every {asked.every:,} steps before {asked.stop_after:.0%} of {steps:,}"
    return f"{times:,} times, {how}: {asked.drop_fraction:.0%} of each neuron's deltas, by {asked.criterion}"


def regrowth(asked: RegrowthSection, records: int, batch_size: int | None, folder: RunFolder) -> list[TrainerCallback]:
    """What drops and grows NeuroAda's inputs where a recipe asks for it; each time is recorded in `folder`.

    records, batch_size: as of `RegrowCallback`.
    """
    if asked.every is None:
        return []

    def note(step: int, changed: int) -> None:
        folder.record("regrow", step=step, changed=changed)

    callback = RegrowCallback(
        every=asked.every,
        drop_fraction=asked.drop_fraction,
        criterion=asked.criterion,
        stop_after=asked.stop_after,
        records=records,
        batch_size=batch_size,
        max_memory=asked.max_memory,
        notify=note,
    )
    return [callback]
