"""A state machine's one step: all of a machine is in its table of (state, event) -> state."""

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

from steertag.errors import StateError

State = TypeVar("State", bound=IntEnum)
Event = TypeVar("Event", bound=IntEnum)


def next_state(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """Where `event` leads from `state`. Raises StateError for a pair that the table lacks."""
    try:
        return table[state, event]
    except KeyError:
        name = type(state).__name__
        raise StateError(f"{name}: event {event.name} in state {state.name}") from None
