"""The list of scenarios, filled by a decorator."""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional

from .peer import Script


class Scenario(NamedTuple):
    """A named part of the script. `later` says why Leveret is not asked yet."""

    name: str
    play: Callable[[Script], None]
    later: Optional[str]


SCENARIOS: Dict[str, Scenario] = {}


def scenario(name: str, later: Optional[str] = None) -> Callable[[Callable[[Script], None]], Callable[[Script], None]]:
    """Register a function as the scenario of that name."""

    def register(play: Callable[[Script], None]) -> Callable[[Script], None]:
        if name in SCENARIOS:
            raise ValueError(f"two scenarios are called {name}")
        SCENARIOS[name] = Scenario(name, play, later)
        return play

    return register
