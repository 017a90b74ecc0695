"""The page of a saved adapter, as a hub shows it."""

import re
from pathlib import Path

from huggingface_hub import ModelCard

from neuroada.recipe.methods import METHODS
from neuroada.recipe.schema import Recipe

TEXT = """
# {method} on {model}

An adapter that [PEFT](https://github.com/huggingface/peft) loads once `neuroada` is imported; without that it stops
with `KeyError: '{kind}'`.

```python
import neuroada
from peft import PeftModel

model = PeftModel.from_pretrained(base, "this folder")  # base: {model}, as transformers loads it
merged = model.merge_and_unload()
```

Trained on task {task} with {settings}, learning rate {rate:g}, seed {seed}.
"""


def write_card(folder: Path, recipe: Recipe) -> None:
    """In the place of the empty form that PEFT leaves in an adapter's folder; its metadata stay."""
    path = folder / "README.md"
    card = ModelCard.load(path)
    settings = ", ".join(f"{name}={value}" for name, value in recipe.settings.items())
    card.text = TEXT.format(
        method=METHODS[recipe.method].label,
        model=plain_text(Path(recipe.model.name).name),
        kind=recipe.method.upper(),
        task=recipe.data.task,
        settings=plain_text(settings) or "the method's defaults",
        rate=recipe.training.learning_rate,
        seed=recipe.seed,
    )
    card.save(path)


def plain_text(text: str) -> str:
    """Words from outside on one line, in which Markdown and HTML see nothing but text."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f\u2028\u2029]", " ", text).split())
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    line = "".join(entities.get(letter, letter) for letter in line)
    return re.sub(r"([\\`*\[\]!|~#])", r"\\\1", line)
