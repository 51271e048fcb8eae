"""The list of scenarios, filled by a decorator."""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional

from .peer import Script


class Own(NamedTuple):
    """The settings of a scenario's own broker: configuration terms of RabbitMQ's application `rabbit`, and a
    configuration file for Leveret."""

    rabbitmq: str
    leveret: str


class Scenario(NamedTuple):
    """A named scenario. `later` is the reason why Leveret is not tested yet. One without exchanges and queues does not
    have to run alone, and slow ones of that kind run at the same time. One with its `own` broker may change it in ways
    that would disturb others."""

    name: str
    play: Callable[[Script], None]
    later: Optional[str]
    alone: bool
    own: Optional[Own]


SCENARIOS: Dict[str, Scenario] = {}


Player = Callable[[Script], None]


def scenario(
    name: str, later: Optional[str] = None, alone: bool = True, own: Optional[Own] = None
) -> Callable[[Player], Player]:
    """Registers a function as the scenario of that name."""

    def register(play: Player) -> Player:
        if name in SCENARIOS:
            raise ValueError(f"two scenarios have the name {name}")
        SCENARIOS[name] = Scenario(name, play, later, alone, own)
        return play

    return register
