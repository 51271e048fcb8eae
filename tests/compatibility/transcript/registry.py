"""The list of scenarios, filled by a decorator."""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional

from .peer import Script


class Own(NamedTuple):
    """A broker that a scenario has for itself: terms for RabbitMQ's application `rabbit`, and a file for Leveret."""

    rabbitmq: str
    leveret: str


class Scenario(NamedTuple):
    """A named part of the script. `later` says why Leveret is not asked yet; one that touches no
    exchange or queue need not play alone, and the slow ones of that kind play side by side. One with a broker
    of its `own` may do with it what others would not survive."""

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
    """Register a function as the scenario of that name."""

    def register(play: Player) -> Player:
        if name in SCENARIOS:
            raise ValueError(f"two scenarios are called {name}")
        SCENARIOS[name] = Scenario(name, play, later, alone, own)
        return play

    return register
