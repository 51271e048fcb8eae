"""Connections that an operator closes: one of two by its pid, then the rest."""

import subprocess
import sys

import pika
from pika.exceptions import ConnectionClosedByBroker

port, binary, data_dir = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def ctl(*words: str) -> str:
    """Run a command of the operator."""
    command = [binary, "ctl", "--data-dir", data_dir, "-s", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def farewell(connection: pika.BlockingConnection) -> None:
    """Wait for the end and print what was said."""
    try:
        while True:
            connection.process_data_events(1)
    except ConnectionClosedByBroker as closed:
        print(closed.reply_code, closed.reply_text.split(" - ")[-1])


parameters = pika.ConnectionParameters("127.0.0.1", port)
first = pika.BlockingConnection(parameters)
pid = ctl("list_connections", "pid").strip()
second = pika.BlockingConnection(parameters)
ctl("close_connection", pid, "go away")
farewell(first)
assert len(ctl("list_connections", "pid").split()) == 1
# Its pid is never another's.
third = pika.BlockingConnection(parameters)
ctl("close_connection", pid, "go away")
third.channel().queue_declare("still-here")
ctl("close_all_connections", "all of you")
farewell(second)
farewell(third)
