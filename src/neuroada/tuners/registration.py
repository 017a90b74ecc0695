"""The only place that touches PEFT's tables of methods."""

from __future__ import annotations

from typing import Any, Union, cast

import peft.mixed_model
import peft.tuners.mixed.model
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_MIXED_MODEL_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def add_peft_type(name: str) -> PeftType:
    """The member of PEFT's closed `PeftType` enumeration called `name`, added to it if it is not there.

    PEFT has no public way to add a method from outside; `register_peft_method` asks for a member first. The member is
    a full one: it is found by name and value, and survives pickling and copying.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member.__dict__.update(_name_=name, _value_=name, _sort_order_=len(PeftType.__members__))
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def register(name: str, config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Make a method known to PEFT under a lower-case name; a second call does nothing."""
    if add_peft_type(name.upper()) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=tuner_class)


def register_mixed(
    name: str,
    config_class: type[PeftConfig],
    tuner_class: type[BaseTuner],
    mixed_class: type[peft.tuners.mixed.model.MixedModel],
) -> None:
    """Let PEFT's mixed models take a registered method; a second call does nothing.

    PEFT keeps closed lists of what they take, and a chain of `isinstance` besides: so `PeftMixedModel` gets a subclass
    of its `MixedModel`, which does with all other methods what that does.
    """
    peft_type = PeftType[name.upper()]
    if peft_type in PEFT_TYPE_TO_MIXED_MODEL_MAPPING:
        return
    tables: Any = peft.tuners.mixed.model
    types = (*tables.COMPATIBLE_TUNER_TYPES, peft_type)
    tables.COMPATIBLE_TUNER_TYPES = cast(Any, peft.tuners.mixed).COMPATIBLE_TUNER_TYPES = types
    tables.PREFIXES.append(cast(Any, tuner_class).prefix)
    tables.Configs = Union[tables.Configs, config_class]  # noqa: UP007 (PEFT asks for its __args__)
    tables.Layers = (*tables.Layers, cast(Any, tuner_class).tuner_layer_cls)
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING[peft_type] = tuner_class
    cast(Any, peft.mixed_model).MixedModel = mixed_class
