"""The data sections of a recipe: one class a task."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroada.recipe.kinds import Count, Fraction, Length, Name, Number, Place, Side

PLACES = ("data_dir", "text", "file", "folder")
"""Keys of a recipe's data that say where a machine keeps it: one run or search may find it elsewhere later."""


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextData(Section):
    """Text for causal language modelling; with neither `text` nor `data_dir`, Python's own manual."""

    task: Literal["text"] = "text"
    text: Place | None = None
    data_dir: Place | None = None
    block_length: Annotated[int, Field(ge=2, le=10**7), Number] = 256
    held_out: Fraction = 0.1
    held_out_blocks: Count | None = None

    @model_validator(mode="after")
    def _one_source(self):
        if self.text is not None and self.data_dir is not None:
            raise ValueError("text and data_dir are both given; give one of them")
        return self


class _Samples(Section):
    """One training sample a record. `data_dir`: laid out as docs/recipes.md says; without it sets come from the hub."""

    data_dir: Place | None = None
    train_records: Count | None = None


class _Completions(_Samples):
    """A prompt and what is to follow it; the loss is on what follows, unless `train_on_prompt`.

    too_long: whether a sample of more than `max_length` tokens loses the beginning of its prompt, or is left out.
    """

    max_length: Length = 512
    too_long: Literal["cut", "drop"] = "cut"
    train_on_prompt: bool = False
    held_out_records: Count = 200


class CommonsenseData(_Completions):
    """Questions with a fixed list of answers: eight tests."""

    task: Literal["commonsense"]
    train_set: Name = "commonsense_15k"


class ArithmeticData(_Completions):
    """Word problems with worked solutions; "gsm8k" and "metamath" have prompts and train sets of their own."""

    task: Literal["arithmetic", "gsm8k", "metamath"]
    train_set: Name | None = None


class InstructData(_Completions):
    """Your own pairs or conversations: a JSON lines file, or a dataset of the hub.

    chat: prompts by the tokeniser's chat template; none for where it has one.
    """

    task: Literal["instruct"]
    file: Place | None = None
    dataset: Name | None = None
    chat: bool | None = None

    @model_validator(mode="after")
    def _one_source(self):
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give either file or dataset")
        return self


class GlueData(_Samples):
    """One GLUE set, by a classification head."""

    task: Literal["glue"]
    name: Name
    max_length: Length = 128


class ImagesData(_Samples):
    """Pictures in folders named after their classes, by a classification head.

    name: of a set in `data_dir` or on the hub. folder: of your own set, in their place. label: the hub set's column of
    class names, where it has several. size: height and width that the model gets, none for its processor's own.
    held_out_records: at most, of each set's pictures for model selection. strict: refuse pictures that cannot be
    decoded, instead of leaving them out. augment: crop and mirror at random while training.
    """

    task: Literal["images"]
    name: Name | None = None
    folder: Place | None = None
    label: Name | None = None
    size: Side | None = None
    held_out_records: Count = 500
    strict: bool = False
    augment: bool = True

    @model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.folder is None):
            raise ValueError("give either name or folder")
        if self.folder is not None and self.data_dir is not None:
            raise ValueError("folder and data_dir are both given; give one of them")
        return self


DATA = {
    "text": TextData,
    "instruct": InstructData,
    "commonsense": CommonsenseData,
    "arithmetic": ArithmeticData,
    "gsm8k": ArithmeticData,
    "metamath": ArithmeticData,
    "glue": GlueData,
    "images": ImagesData,
}
"""By task. A recipe's `data` section is one of them."""

AnyData = TextData | InstructData | CommonsenseData | ArithmeticData | GlueData | ImagesData
