"""A core of Home Assistant with its MQTT integration, which is set up from a stored config entry. It runs with the interpreter
of Home Assistant's own environment.

    with_homeassistant FOLDER PORT COUNT

It prints `started` when the integration is set up. Then it reads rounds from standard input, and prints `complete ROUND`
when each of the COUNT sensors has the state of that round. `missing ...` says what has not come yet. An empty line ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import List

from homeassistant import bootstrap, loader
from homeassistant.auth import auth_manager_from_config
from homeassistant.config_entries import ConfigEntries
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component

ENTRY = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
# Seconds between two comparisons, and between two lines `missing`.
PAUSE, COMPLAINT = 0.2, 5.0


def store_entry(folder: Path, port: int) -> None:
    """Writes what Home Assistant stores when a user has added the integration. The oldest format is migrated."""
    storage = folder / ".storage"
    storage.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.yaml").touch()
    file = storage / "core.config_entries"
    if not file.exists():
        entry = {"entry_id": ENTRY, "version": 1, "domain": "mqtt", "title": "MQTT", "source": "user", "options": {},
                 "data": {"broker": "127.0.0.1", "port": port, "username": "guest", "password": "guest",
                          "discovery": True},
                 "pref_disable_new_entities": False, "pref_disable_polling": False, "unique_id": None,
                 "disabled_by": None}
        file.write_text(json.dumps({"version": 1, "minor_version": 1, "key": "core.config_entries",
                                    "data": {"entries": [entry]}}))


async def started(folder: Path) -> HomeAssistant:
    """Returns a core with the MQTT integration."""
    hass = HomeAssistant(str(folder))
    hass.config.config_dir = str(folder)
    # The environment has the packages already.
    hass.config.skip_pip = True
    hass.config_entries = ConfigEntries(hass, {})
    loader.async_setup(hass)
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth_manager_from_config(hass, [], [])
    # The integration needs these only to upload certificates.
    hass.config.components.update({"http", "file_upload"})
    if not await async_setup_component(hass, "mqtt", {}):
        raise SystemExit("the integration was not set up")
    await hass.async_start()
    return hass


def wrong(hass: HomeAssistant, count: int, turn: str) -> List[str]:
    """Returns the sensors without the state of a round."""
    states = {state.entity_id: state.state for state in hass.states.async_all("sensor")}
    found = []
    for number in range(count):
        state = states.pop(f"sensor.d{number // 4}_e{number}", None)
        if state != f"{number}.{turn}":
            found.append(f"{number}: {state}")
    return found + [f"{entity}: not published" for entity in states]


async def main() -> None:
    """Runs until standard input ends."""
    folder, port, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store_entry(folder, port)
    hass = await started(folder)
    print("started", flush=True)
    while turn := (await asyncio.to_thread(sys.stdin.readline)).strip():
        waited = 0.0
        while bad := wrong(hass, count, turn):
            await asyncio.sleep(PAUSE)
            waited += PAUSE
            if waited >= COMPLAINT:
                waited = 0.0
                print("missing", len(bad), bad[:3], flush=True)
        print("complete", turn, flush=True)
    await hass.async_stop()
    print("stopped", flush=True)


asyncio.run(main())
