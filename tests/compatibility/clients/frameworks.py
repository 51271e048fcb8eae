"""Unmodified frameworks lose no task when a worker or the broker is killed.

A case has a broker that keeps its port and data over a kill, a file into which programs write a line for each completed
task, and a process for each program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

from harness import brokers, environment
from harness.suite import Suite

from clients.program import Program

HERE = Path(__file__).resolve().parent
PATIENCE = 90.0
CELERY = "5.7.0"


class RestartedLeveret:
    """A Leveret that restarts with the same port and data after a kill, without any settings."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="leveret-frameworks-"))
        self.port = 0
        self._start()
        self.port = self.broker.address.port

    def _start(self) -> None:
        self.broker = brokers.Leveret(brokers.leveret_binary(), ["--port", str(self.port)] if self.port else [],
                                      data_dir=self.home / "data")

    def kill(self) -> None:
        """Kills the broker with SIGKILL."""
        assert self.broker.alive(), "the broker had ended before it was killed:\n" + self.broker.log()
        self.broker.kill()
        self.broker.close()
        self._start()

    def close(self) -> None:
        """Stops the broker and deletes its data."""
        self.broker.close()
        shutil.rmtree(self.home, ignore_errors=True)


class RestartedRabbitMq:
    """A RabbitMQ whose application is stopped and started, which closes all connections."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="leveret-frameworks-"))
        self.broker = brokers.RabbitMq()
        self.port = self.broker.address.port

    def kill(self) -> None:
        """Stops the application with RabbitMQ's own tool."""
        self.broker.ctl("stop_app")
        self.broker.ctl("start_app")

    def close(self) -> None:
        """Stops RabbitMQ."""
        self.broker.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Stage:
    """One broker, one Python environment, and all the programs of a case."""

    def __init__(self, server: "RestartedLeveret | RestartedRabbitMq", python: Path, folder: Path) -> None:
        self.server = server
        self.python = python
        self.folder = folder
        self.programs: List[Program] = []
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        (server.home / "results").mkdir(exist_ok=True)
        self.environment: Dict[str, str] = dict(
            kept, AMQP_URL=f"amqp://guest:guest@127.0.0.1:{server.port}/%2F", LEDGER=str(server.home / "ledger"),
            RESULTS=str(server.home / "results"), PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1",
            PYTHONPATH=str(folder))
        with contextlib.suppress(FileNotFoundError):
            (server.home / "ledger").unlink()

    def start(self, *words: str) -> Program:
        """Starts a program with the interpreter of the environment."""
        return self.start_command([str(self.python), *words])

    def start_command(self, command: List[str]) -> Program:
        """Starts any command."""
        program = Program(" ".join(command[1:]), command, self.environment)
        self.programs.append(program)
        return program

    def tell(self, words: List[str], start_worker: Callable[[], Program]) -> None:
        """Runs a program to its end beside a worker that was started first, and kills what it requests."""
        worker = start_worker()
        story = self.start(*words)
        for number in range(10):
            line = story.asks(number, PATIENCE)
            if line.startswith("ok "):
                story.ended()
                return
            if line == "please worker":
                worker.kill()
                worker = start_worker()
            else:
                self.server.kill()
            story.answer()

    def end(self) -> None:
        """Ends the programs that still run."""
        for program in self.programs:
            program.kill()

    def log(self) -> str:
        """Returns the output of all programs, for a failure."""
        return "\n".join(f"  {program.name}\n{program.text()}" for program in self.programs)


def celery_chapter(stage: Stage, app: str, chapter: str) -> None:
    """Runs one chapter of stories/with_celery.py."""

    def worker() -> Program:
        found = stage.start("-m", "celery", "-A", app, "worker", "--concurrency", "2", "-E", "--loglevel", "INFO",
                            "-n", "one@here", "--without-mingle")
        found.wait(" ready.", patience_s=PATIENCE)
        return found

    stage.tell([str(stage.folder / "with_celery.py"), chapter], worker)


CELERY_CHAPTERS = {"results": "jobs", "countdown": "jobs", "topics": "jobs", "control": "jobs",
                   "killed_worker": "jobs", "killed_broker": "jobs", "priorities": "urgent", "delayed": "delayed",
                   "turns": "shared"}


class Framework(NamedTuple):
    """The packages of a framework, and the command of its worker."""

    packages: List[str]
    worker: List[str]
    ready: str


FRAMEWORKS: Dict[str, Framework] = {
    "dramatiq": Framework(["dramatiq==1.17.1", "pika==1.4.4"], ["-m", "dramatiq", "with_dramatiq", "--processes", "1",
                          "--threads", "2"], "ready for action"),
    "taskiq": Framework(["taskiq==0.13.0", "taskiq-aio-pika==0.6.1"], ["-m", "taskiq", "worker", "with_taskiq:broker",
                        "--workers", "1", "--ack-type", "when_executed"], "Listening started"),
    "faststream": Framework(["faststream[rabbit]==0.7.8"], ["STORY", "work"], "worker is ready"),
    "oslo": Framework(["oslo.messaging==18.3.1"], ["STORY", "work"], "worker is ready"),
}


def framework_story(stage: Stage, name: str) -> None:
    """Runs stories/with_NAME.py."""
    story = str(stage.folder / f"with_{name}.py")
    framework = FRAMEWORKS[name]

    def worker() -> Program:
        found = stage.start(*(story if word == "STORY" else word for word in framework.worker))
        found.wait(framework.ready, patience_s=PATIENCE)
        return found

    stage.tell([story, name], worker)


class Case(NamedTuple):
    """A case and what has to be installed for it."""

    packages: List[str]
    run: Callable[[Stage], None]


CASES: Dict[str, Case] = {
    **{f"celery-{chapter.replace('_', '-')}":
       Case([f"celery=={CELERY}"], lambda stage, app=app, chapter=chapter: celery_chapter(stage, app, chapter))
       for chapter, app in CELERY_CHAPTERS.items()},
    **{name: Case(framework.packages, lambda stage, name=name: framework_story(stage, name))
       for name, framework in FRAMEWORKS.items()},
}


def run(rabbitmq: bool, only: Optional[List[str]] = None) -> int:
    """Runs the suite. Returns the exit code."""
    suite = Suite("clients/rabbitmq" if rabbitmq else "clients", only)
    for name, case in CASES.items():
        suite.case(name, lambda: on_a_stage(case, rabbitmq))
    return suite.status()


def on_a_stage(case: Case, rabbitmq: bool) -> None:
    """Runs a case with its own broker and folder."""
    python = environment.python_with(case.packages[0].replace("==", "-").replace("[rabbit]", ""), *case.packages)
    server = RestartedRabbitMq() if rabbitmq else RestartedLeveret()
    stage = Stage(server, python, HERE / "stories")
    told(stage, lambda: case.run(stage))


def told(stage: Stage, run: Callable[[], None]) -> None:
    """Runs a case and always removes its broker and folder."""
    server = stage.server
    try:
        run()
        assert server.broker.alive(), "the broker ended"
    except Exception:
        print(stage.log() + "\n" + server.broker.log()[-3000:])
        raise
    finally:
        stage.end()
        server.close()
