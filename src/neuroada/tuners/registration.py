"""The only place that touches PEFT's table of methods."""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
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
