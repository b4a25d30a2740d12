"""Makes PEFT accept a method that does not live in its own package.

`register_peft_method` wants the method's name to be a member of the enumeration `PeftType`, and an
enumeration is closed. This adds the one missing member; everything else goes through PEFT's door.
"""

from peft.utils import PeftType


def add_peft_type(name: str) -> PeftType:
    """Adds a member to `PeftType`, or returns the one that is there.

    Args:
        name: upper case, such as TRILORA; the value equals the name as for PEFT's own members.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member
