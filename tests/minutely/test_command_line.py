"""What people type: mistakes are told by the option that was typed, and every kind of end has a status of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread, Timer

import pytest
import yaml
from click.testing import CliRunner, Result

from minutely.cli import cli
from minutely.ends import Ending
from minutely.services import service
from minutely.services.freshness import COMPOSE
from minutely.terminal import Terminal, TitledTable
from stack.ports import free_ports
from streaming.kafka import topics
from streaming.kafka.settings import BOOTSTRAP
from tests.commands import ROOT, execute

SHOP = ROOT / "examples/shop/shop.yaml"
NOBODY = "http://127.0.0.1:9/ranking/of/the/shop/on/the/front/page/in/the/second/region/of/three"


def typed(command: str) -> Result:
    """A command, in this process."""
    return CliRunner().invoke(cli, command.split())


def said(done: Result) -> str:
    """What it said, whatever box it stands in."""
    return " ".join(done.output.replace("│", " ").split())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type in: a config, a file, an empty folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SHOP, "shop.yaml")
    Path("odd.yaml").write_text(
        SHOP.read_text().replace("sync: {sparse_every: 60s", "train: {step_every: 7s}\nsync: {sparse_every: 7s")
    )
    Path("file").write_text("")
    Path("empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "replay shop.yaml --sync-every 90s",
            "shop: --sync-every: 90s; allowed: multiples of train.step_every (1m), or never",
        ),
        (
            "compare odd.yaml",
            "shop: train.step_every: 7s; 60s, 5m, 1h, 24h are compared; allowed: a time that divides them",
        ),
        ("replay shop.yaml --out file/run", "file/run: --out: cannot be written; Not a directory"),
        ("replay shop.yaml --out /proc/run", "/proc/run: --out: cannot be written"),
        ("compare shop.yaml --out .", ".: --out: is not empty"),
        ("replay shop.yaml --as-of 2026-01-01 --deltas empty --out file/run", "file/run: --out: cannot be written"),
        ("train shop.yaml --from archive --archive a --out file/run", "file/run: --out: cannot be written"),
        ("train shop.yaml --from archive --archive file", "file: --archive: Generic LocalFileSystem error"),
        ("train shop.yaml --from archive --archive none", "none: --archive: no archive there"),
        ("train shop.yaml --from archive --run none", "none: --run: no run there"),
        ("train shop.yaml --deltas file/deltas", "file/deltas: --deltas: cannot be written"),
        ("train shop.yaml --deltas file", "file: --deltas: cannot be written"),
        ("join shop.yaml --state file/state", "file/state: --state: cannot be written"),
        ("versions --deltas none", "none: --deltas: no such folder"),
        ("rollback 3 --deltas none", "none: --deltas: no such folder"),
        ("rollback --release --deltas none", "none: --deltas: no such folder"),
        ("replay shop.yaml --as-of 2026-01-01 --deltas none", "none: --deltas: no such folder"),
        ("serve shop.yaml", "state/shop/deltas: --deltas: no such folder"),
        ("rollback 3 --deltas empty", "empty: --deltas: no version is there"),
        ("rollback --release --deltas empty", "empty: --deltas: no version is there"),
        ("replay shop.yaml --as-of 2026-01-01 --deltas empty", "empty: --deltas: no version is there"),
        ("versions", "runs/latest: --run: no run there"),
        ("rows item -5", "runs/latest: --run: no run there"),
        ("rows item -5 --run none", "none: --run: no run there"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_option(command: str, told: str, here: Path) -> None:
    before = sorted(here.rglob("*"))
    done = typed(command)
    assert done.exit_code == 1, done.output
    assert f"error {told}" in said(done)
    assert "\x1b" not in done.output
    assert sorted(here.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize("command", ["check", "join", "train", "archive", "serve", "produce"])
def test_nothing_starts_where_brokers_would_delete_what_is_needed(command: str, here: Path) -> None:
    text = SHOP.read_text()
    assert "\nkafka:" not in text
    Path("short.yaml").write_text(text + "\nkafka: {retention: 1m}\n")
    done = typed(f"{command} short.yaml")
    assert done.exit_code == 1, done.output
    assert "kafka.retention: 1m; allowed: " in said(done)
    assert sorted(Path("empty").rglob("*")) == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "serve shop.yaml --listen [::1]",
            "'--listen': '[::1]'; allowed: HOST:PORT, as in 127.0.0.1:9464 or [::1]:9464",
        ),
        ("serve shop.yaml --listen ::1:8080", "'--listen': '::1:8080'; allowed"),
        ("serve shop.yaml --listen [::1::]:8080", "'--listen': '[::1::]:8080'; allowed"),
        ("serve shop.yaml --listen [127.0.0.1]:8080", "'--listen': '[127.0.0.1]:8080'; allowed"),
        (
            "serve shop.yaml --listen [::1]:65536",
            "'--listen': '[::1]:65536'; allowed: HOST:PORT, as in 127.0.0.1:9464 or [::1]:9464, ports 1 to 65535",
        ),
        ("join shop.yaml --metrics here", "'--metrics': 'here'; allowed"),
        ("archive shop.yaml --metrics [::1]8080", "'--metrics': '[::1]8080'; allowed"),
        ("freshness ::1:8081", "'::1:8081'; allowed: HOST:PORT, as in 127.0.0.1:8081 or [::1]:8081"),
        ("freshness ftp://127.0.0.1:8081", "'ftp://127.0.0.1:8081'; allowed"),
        ("freshness --every 0s", "'--every': '0s': must be longer than 0s"),
        ("freshness --every -1", "'--every': '-1': not a duration; allowed: a number with its unit"),
        ("replay shop.yaml --sync-every 90", "'--sync-every': '90': not a duration"),
        ("replay shop.yaml --as-of soon", "'--as-of': 'soon': allowed: a date or a time in ISO 8601"),
        ("train shop.yaml --from archive --since soon", "'--since': 'soon': allowed"),
        ("produce shop.yaml --speed 60", "'--speed': '60'; allowed: a positive number with x, as in 60x"),
        ("produce shop.yaml --rate -5/s", "'--rate': '-5/s'; allowed"),
        ("rollback -3", "-3 is not in the range x>=1"),
        ("rows item 5 --rnu x", "Did you mean --run?"),
    ],
)
def test_a_wrong_command_line_ends_with_2(command: str, told: str, here: Path) -> None:
    done = typed(command)
    assert done.exit_code == 2, done.output
    assert told in said(done)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay of a log whose items are -5 and 7."""
    folder = tmp_path_factory.mktemp("negative")
    lines = ["time,request,item,clicked"]
    lines += [f"{1_700_000_000_000 + 1000 * at},r{at},{-5 if at % 2 else 7},{at % 3 // 2}" for at in range(60)]
    lines.append("noon,r60,7,0")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    config = {
        "name": "negative",
        "source": {
            "dir": str(folder),
            "impressions": {
                "file": "log.csv",
                "time": {"column": "time"},
                "request": ["request"],
                "impression": ["item"],
            },
            "actions": {"click": {"when": "clicked", "delay": "1s"}},
        },
        "features": {"item": {"column": "item"}},
        "labels": {"click": {"action": "click", "window": "10s"}},
        "model": {"dim": 4, "hidden": [8]},
    }
    (folder / "negative.yaml").write_text(yaml.safe_dump(config))
    assert typed(f"replay {folder}/negative.yaml --out {folder}/run").exit_code == 0
    return folder / "run"


def test_rows_of_negative_ids(run: Path) -> None:
    for command in ("rows item -5 --run {run}", "rows --run {run} item -5", "rows --run {run} -- item -5"):
        done = typed(command.format(run=run))
        assert done.exit_code == 0, done.output
        assert "item -5, version" in done.output
    done = typed(f"rows item -6 --run {run}")
    assert done.exit_code == 1 and "table item: -6; not among the 2 rows" in done.output


def test_dead_letters_of_a_replay(run: Path) -> None:
    done = typed(f"dead-letters --run {run} --reason malformed")
    assert done.exit_code == 0 and "line 62, column time: 'noon'; not a time" in said(done), done.output
    assert said(done).endswith("1 dead letters")
    assert said(typed(f"dead-letters --run {run} --reason late")).endswith(
        "none of reason late; there are: malformed 1"
    )
    done = typed(f"dead-letters --run {run} --again")
    assert done.exit_code == 2 and "--again sends what is on Kafka" in said(done)
    assert "6: 'noon'" in said(typed(f"dead-letters --run {run}")), "what was refused, not its bytes"
    done = typed("dead-letters movielens --again --reason nonsense")
    assert done.exit_code == 2 and "allowed with --again: before_served, feature, future, late" in said(done)
    done = typed(f"dead-letters --run {run} --since 7d")
    assert done.exit_code == 2 and "--since says what --again sends" in said(done)
    for command in ("dead-letters", f"dead-letters movielens --run {run}"):
        done = typed(command)
        assert done.exit_code == 2 and "give either CONFIG" in said(done), "a config that is not read is not asked for"


def test_freshness_where_nobody_answers() -> None:
    """As a script reads it: a line for each replica, however long, and status 5."""
    port = free_ports(1)[0]
    done = execute(f"minutely freshness {NOBODY} [::1]:{port}")
    assert done.returncode == 5, done.stderr
    heading, first, second = done.stdout.splitlines()
    assert heading.split()[:2] == ["replica", "state"] and heading.split()[-1] == "rows"
    assert first.startswith(NOBODY) and "refused" in first
    assert second.startswith(f"[::1]:{port}")
    assert done.stderr.startswith(f"no answer {NOBODY}, [::1]:{port}: ")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("serve shop.yaml --deltas empty --listen", "--listen"),
        ("serve shop.yaml --deltas empty --listen 127.0.0.1:{free} --health", "--health"),
        ("train shop.yaml --metrics", "--metrics"),
        ("archive shop.yaml --archive archive --metrics", "--metrics"),
        ("join shop.yaml --metrics", "--metrics"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_named_with_its_host(command: str, option: str, host: str, here: Path) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        address = f"{f'[{host}]' if ':' in host else host}:{other.getsockname()[1]}"
        done = typed(f"{command.format(free=free_ports(1)[0])} {address}")
    assert done.exit_code == 4, repr(done.exception)
    assert f"cannot listen {option} {address}: another program listens there; allowed: a free port\n" in done.output


def test_an_address_that_is_not_this_machines(here: Path) -> None:
    done = typed("serve shop.yaml --deltas empty --listen 192.0.2.1:8080")
    assert done.exit_code == 4, repr(done.exception)
    assert "cannot listen --listen 192.0.2.1:8080: Cannot assign requested address" in done.output


@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("command", ["dead-letters shop.yaml", "dead-letters shop.yaml --again", "produce shop.yaml"])
def test_brokers_that_are_not_there_are_named(
    command: str, variable: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PERSON_SECONDS", 0.0)
    monkeypatch.setattr(topics, "_ASK_SECONDS", 0.5)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    if variable:
        monkeypatch.setenv(BOOTSTRAP, address)
    else:
        Path("shop.yaml").write_text(SHOP.read_text() + f"\nkafka: {{bootstrap: '{address}'}}\n")
    done = typed(command)
    assert done.exit_code == 5, repr(done.exception)
    assert f"no answer brokers at {address} ({'$KAFKA_BOOTSTRAP' if variable else 'kafka.bootstrap'}): " in done.output


def test_a_service_that_waits_for_brokers_names_them(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits until it is asked to end, and then ends as usual."""
    monkeypatch.setattr(topics, "_ASK_SECONDS", 0.5)
    monkeypatch.setenv(BOOTSTRAP, address := f"127.0.0.1:{free_ports(1)[0]}")
    timer = Timer(3.0, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    done = typed("join shop.yaml")
    timer.join()
    assert done.exit_code == 0, done.output
    assert [record.message for record in caplog.records if "retrying" in record.message] == [
        f"start: TRANSPORT: Failed to get metadata: Local: Broker transport failure; retrying in up to 2 s; asked {address} "
        "($KAFKA_BOOTSTRAP)"
    ]


def test_a_limit_of_open_files_that_leaves_no_room(here: Path) -> None:
    """It took no connection, and said only that it takes -84."""
    subprocess.run([sys.executable, ROOT / "examples/shop/make_logs.py", "shop-logs"], check=True)
    (port,) = free_ports(1)
    serve = f"minutely serve shop.yaml --deltas empty --listen 127.0.0.1:{port}"
    done = execute(f"sh -c 'ulimit -n 300; exec {serve}'", here)
    assert (done.returncode, done.stdout) == (1, "")
    assert "system: limit of open files; allowed: room for 85 more (ulimit -n)" in done.stderr


def test_freshness_of_what_is_no_replica() -> None:
    """Something else answers at the port, and not by HTTP."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail\nready\n")

        thread = Thread(target=answer)
        thread.start()
        done = typed(f"freshness --json 127.0.0.1:{other.getsockname()[1]}")
        thread.join()
    assert done.exit_code == 5, repr(done.exception)
    assert '"error":"220 mail"' in done.output


def test_freshness_asks_the_replicas_of_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ports = [each["ports"][0] for name, each in services.items() if name.startswith("serve-")]
    assert ports == [f"{address}:8080" for address in COMPOSE]
    done = typed("freshness --json")
    assert [f'"url":"{address}"' in line for address, line in zip(COMPOSE, done.output.splitlines(), strict=False)] == [
        True,
        True,
    ]


def test_ctrl_c_ends_quietly() -> None:
    """Whatever the command is at: here it waits for a replica that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [Path(sys.executable).parent / "minutely", "freshness", address]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What a shell runs in the background ignores Ctrl-C, and so would what it begins.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            silent.settimeout(30)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=30)
            connection.close()
    assert process.returncode == 130
    assert (printed, errors) == ("", "")


def test_a_reader_that_leaves_ends_it_quietly(run: Path) -> None:
    """As `head` does. What was to be done is done; only the status says that not all of it was read."""
    program = Path(sys.executable).parent / "minutely"
    read, write = os.pipe()
    os.close(read)
    for arguments, status in ((["versions", "--run", run], 141), (["freshness", "--json", "127.0.0.1:9"], 5)):
        done = subprocess.run([program, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == status
        assert "BrokenPipe" not in done.stderr and len(done.stderr.splitlines()) == (status == 5)
    os.close(write)


def test_every_status_is_in_the_help_and_on_the_page() -> None:
    statuses = {*map(int, Ending), 0, 2}
    page = (ROOT / "docs/command-line.md").read_text().split("## Exit statuses")[1]
    assert {int(line.split("|")[1]) for line in page.splitlines() if line[:3].strip("| ").isdigit()} == statuses
    text = said(typed("--help")).split("Exit statuses:")[1]
    assert set(map(int, re.findall(r"\b[0-9]+\b", text))) == statuses


def test_every_command_is_on_the_page() -> None:
    page = (ROOT / "docs/command-line.md").read_text()
    missing = [name for name in cli.commands if not re.search(rf"`{name}[` ]", page)]
    assert not missing


_ASKED = """
import os
from minutely.ends import stop_on_signal
with stop_on_signal() as stop:
    for count in range({times}):
        os.kill(os.getpid(), {number})
        print(count, stop(), flush=True)
print("in order")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_once_it_ends_in_order_and_asked_twice_at_once(number: signal.Signals) -> None:
    def ended(times: int) -> tuple[int, str]:
        code = _ASKED.format(times=times, number=int(number))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert ended(1) == (0, "0 True\nin order\n")
    assert ended(2) == (-number, "0 True\n")


def test_a_title_longer_than_its_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = TitledTable("a", heading="what is said of it " * 20)
    table.add_row("1")
    Terminal().print(table)
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.strip() == ("what is said of it " * 20).strip()
    assert max(map(len, rows)) < 10
