"""The user's own instruction data: prompt and completion, instruction and output, or chats, from a file or the hub."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from neuroada.errors import ConfigError, MissingInputError
from neuroada.tasks.arithmetic import alpaca_prompt
from neuroada.tasks.examples import Example
from neuroada.tasks.records import Fields, check_record, describe_hub, load_records, read_records

Message = dict[str, str]


class Chat(NamedTuple):
    """The messages of a record, some of them the assistant's, and the file and line it comes from."""

    messages: list[Message]
    source: str


class Shape(NamedTuple):
    """The fields of a record and the chat that they make."""

    fields: Fields
    messages: Callable[[dict[str, Any]], list[Message]]


def load(file: Path | None, dataset: str | None, part: str = "train") -> tuple[list[Chat], str]:
    """The records of a file of JSON lines, or of the `part` of a hub data set, and where they come from.

    dataset: "owner/name", or "owner/name/configuration". A record has prompt and completion, instruction and output
    (and an input), or messages; prompt and completion may be lists of messages.

    Raises:
        MissingInputError: the data are not there, or a record is malformed; the message names file and line.
    """
    if file is not None:
        rows, place, between = read_records(file, {}), str(file), ", line "
    else:
        hub = _hub(dataset or "", part)
        rows, place, between = load_records(None, (), {}, hub), describe_hub(hub), ", row "
    rows = enumerate(rows, start=1)
    return [Chat(_messages(row, f"{place}{between}{number}"), f"{place}:{number}") for number, row in rows], place


def to_examples(
    chats: Iterable[Chat], tokenizer: PreTrainedTokenizerBase, template: bool | None = None
) -> list[Example]:
    """An example for each turn of the assistant, in order: split records, not examples, to hold some out.

    template: whether prompts are the tokenizer's chat template's; None where it has one, and Alpaca's otherwise.

    Raises:
        ConfigError: `template` is true and the tokenizer has none.
        MissingInputError: the template refuses a chat, or there is none for one of several turns.
    """
    if template and not tokenizer.chat_template:
        do = "Choose an instruct model, or leave the template out"
        raise ConfigError(f"tokenizer {tokenizer.name_or_path!r}", "it has no chat template", do)
    use_template = bool(tokenizer.chat_template) and template is not False
    examples = []
    for messages, source in chats:
        for index, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            if use_template:
                prompt, target = _templated(messages[:index], turn, tokenizer, source)
            else:
                prompt, target = _plain(messages[:index], source), turn["content"]
            examples.append(Example(prompt, target, turn["content"], source))
    return examples


def _hub(dataset: str, part: str) -> tuple[str, str | None, str]:
    owner, _, rest = dataset.partition("/")
    name, _, configuration = rest.partition("/")
    if not owner or not name:
        found = "no name of a data set on the hub, which has an owner and a slash"
        raise MissingInputError(f"data set {dataset!r}", found, "Give owner/name, or a file of JSON lines")
    return f"{owner}/{name}", configuration or None, part


def _messages(record: dict[str, Any], place: str) -> list[Message]:
    shape = next((shape for shape in SHAPES if set(shape.fields) <= set(record)), None)
    if shape is None:
        found = f"it has {', '.join(map(repr, record)) or 'no field'}"
        raise MissingInputError(place, found, "Write prompt and completion, instruction and output, or messages")
    given = {"input": str} if "instruction" in shape.fields and record.get("input") else {}
    check_record(record, place, {**shape.fields, **given}, may_be_empty=("input",))
    messages = shape.messages(record)
    for number, message in enumerate(messages, start=1):
        check_record(message, f"{place}, message {number}", {"role": str, "content": str})
    if not any(message["role"] == "assistant" for message in messages):
        raise MissingInputError(place, "no message of the assistant", "Leave the chat out, or end it with an answer")
    return messages


def _said(text: str | list[Message], role: str) -> list[Message]:
    return text if isinstance(text, list) else [{"role": role, "content": text}]


def _pair(record: dict[str, Any]) -> list[Message]:
    return _said(record["prompt"], "user") + _said(record["completion"], "assistant")


def _instruction(record: dict[str, Any]) -> list[Message]:
    given = record.get("input") or ""
    asked = f"{record['instruction']}\n\n{given}" if given.strip() else record["instruction"]
    return _said(asked, "user") + _said(record["output"], "assistant")


SHAPES = (
    Shape({"messages": list}, lambda record: record["messages"]),
    Shape({"prompt": (str, list), "completion": (str, list)}, _pair),
    Shape({"instruction": str, "output": str}, _instruction),
)


def _templated(before: list[Message], turn: Message, tokenizer: PreTrainedTokenizerBase, place: str) -> tuple[str, str]:
    """The prompt as at generation, and what the template writes after it, without the end of text.

    Where the template writes something else before a turn that is there, the target is the turn's own text.
    """
    try:
        prompt = str(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template([*before, turn], tokenize=False))
    except TemplateError as error:
        found = f"the model's chat template refuses it ({error})"
        raise MissingInputError(place, found, "Reorder the chat, or leave it out") from error
    if not whole.startswith(prompt):
        return prompt, turn["content"]
    target, end = whole[len(prompt) :], tokenizer.eos_token
    return prompt, target.rstrip().removesuffix(end) if end and target.rstrip().endswith(end) else target


def _plain(before: list[Message], place: str) -> str:
    """Alpaca's prompt; a system message stands before the instruction."""
    if [message["role"] for message in before] not in (["user"], ["system", "user"]):
        found = "a chat of several turns, or one that no user begins, for a tokenizer without a chat template"
        raise MissingInputError(place, found, "Choose an instruct model, or give single questions and answers")
    return alpaca_prompt("\n\n".join(message["content"] for message in before))
