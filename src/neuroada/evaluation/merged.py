"""The merged form of a trained model: written to a folder of its own, and compared with the adapted one."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import PeftModel
from rich.console import Console

from neuroada.errors import ConfigError
from neuroada.evaluation.loading import load_trained
from neuroada.recipe.methods import METHODS
from neuroada.run_folder.folder import whole_folder
from neuroada.tasks.images.pixels import ImageRows


def merge(target: str, output: Path, console: Console) -> str:
    """Write the merged model of a run or an adapter to a new folder, as safetensors, with what prepares its input.

    Returns:
        The dtype of its weights: the recipe's, or else that of the base model's files.

    Raises:
        ConfigError: the method cannot be merged, or `output` is not empty.
        MissingInputError: a part of the run is not there.
    """
    if output.resolve() == Path.cwd():
        raise ConfigError(f"--output {output}", "it is the folder that you are in", "Name a folder in it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}", "it exists already and is not empty", "Choose another folder")
    trained = load_trained(target, "auto", console)
    if not isinstance(trained.model, PeftModel):
        raise ConfigError(f"merging {target}", "it is a whole model, with no adapter in it", "Use it as it is")
    if trained.recipe is not None and not METHODS[trained.recipe.method].merges:
        raise ConfigError(f"merging {target}", f"{trained.recipe.method} cannot be merged", "Use the adapter")
    with console.status("Merging"), whole_folder(output) as beside:
        merged = trained.model.merge_and_unload()
        merged.save_pretrained(str(beside))
        trained.processor.save_pretrained(str(beside))
    return str(merged.dtype).removeprefix("torch.")


@torch.no_grad()
def compare_merged(model: Any, held_out: Dataset | ImageRows, collator: Any, rows: int) -> dict[str, Any]:
    """Logits of one held-out batch, adapted and then merged, compared bit for bit; merges the model.

    rows: of the batch, at most as many as there are. collator: makes a batch of them.
    """
    batch = collator([held_out[row] for row in range(min(rows, len(held_out)))])
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "logits_to_keep")}
    inputs = send_to_device(inputs, model.device)
    model.eval()
    adapted = model(**inputs).logits
    merged = model.merge_and_unload()(**inputs).logits
    bits = torch.int16 if adapted.element_size() == 2 else torch.int32
    differing = int((adapted.view(bits) != merged.view(bits)).sum())
    return {
        "equal": differing == 0,
        "logits": adapted.numel(),
        "differing": differing,
        "largest": float((adapted.float() - merged.float()).abs().max()),
    }
