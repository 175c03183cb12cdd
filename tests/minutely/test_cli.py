"""The command line: bad input ends with what, where and what is allowed; Ctrl-C leaves a whole state."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from minutely.cli import cli
from tests.commands import ROOT, execute

SHOP = (ROOT / "examples/shop/shop.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "shop-logs"
    subprocess.run([sys.executable, ROOT / "examples/shop/make_logs.py", folder], check=True)
    return folder


def _config(folder: Path, *changes: tuple[str, str]) -> Path:
    text = SHOP
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "shop.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _copy(logs: Path, folder: Path) -> Path:
    return Path(shutil.copytree(logs, folder / "logs"))


def _check(config: Path, data: Path) -> tuple[int, str]:
    done = execute(f"minutely check {config} --data {data}")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_check_tells_what_it_found(logs: Path, tmp_path: Path) -> None:
    done = execute(f"minutely check {_config(tmp_path)} --data {logs}")
    assert done.returncode == 0, done.stderr
    for part in ("3,000 impressions", "600 requests", "categories", "click", "10m"):
        assert part in done.stdout
    assert "look at" not in done.stdout, "the example is one to follow"
    assert "position" not in done.stdout, "a ranking cannot know the position that it decides"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("column: user,", "column: usr,"), ["impressions.csv: features.user: column usr: missing", "the file has"]),
        (
            ("column: price, side: items", "column: brand, side: items"),
            ["items.parquet: features.brand, features.price: column brand", "allowed: numbers"],
        ),
        (("window: 10m", "window: -10m"), ["labels.click.window", "'-10m'", "cannot be negative"]),
        (("name: shop", "name: shop\nsalt: 1"), ["line", "'salt'", "unknown key", "allowed: name"]),
        (("file: events.jsonl", "file: nothing.jsonl"), ["nothing.jsonl", "not there"]),
        (("size: 4", "size: 5"), ["features.picture: column picture", "lists of 5 numbers"]),
        (
            ("[request]\n    impression: [item] #", "[request]\n    impression: [itm] #"),
            ["impressions.csv: source.impressions.impression: column itm: missing"],
        ),
        (("key: item}", "key: item, on: itm}"), ["impressions.csv: source.sides.items.on: column itm: missing"]),
        (("action: action", "action: what"), ["events.jsonl: source.engagements.action: column what: missing"]),
        (
            ("kind: dense, column: price, side: items, transform: log", "column: price, side: items"),
            [
                "items.parquet: features.price: column price: values such as",
                "other numbers with kind: dense, or bucket: log2",
            ],
        ),
        (
            ("column: brand, side: items", "column: brand, side: items, pool: mean"),
            [
                "features.brand: column brand: type string",
                'with it, lists of them, or texts that split: "," takes apart',
            ],
        ),
    ],
)
def test_mistakes_are_told_with_their_place(
    logs: Path, tmp_path: Path, change: tuple[str, str], said: list[str]
) -> None:
    status, text = _check(_config(tmp_path, change), logs)
    assert status == 1
    for part in said:
        assert part in text, text


def test_a_label_that_the_log_does_not_know_is_told_with_its_line(logs: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, ("click: {action: click", "click: {action: clik"))
    status, text = _check(config, logs)
    line = next(at for at, each in enumerate(config.read_text().splitlines(), 1) if "clik" in each)
    assert status == 1
    assert f"error {config}: line {line}, labels.click.action: 'clik'; never happens in the log" in text


def test_an_action_of_a_live_feature_that_the_log_does_not_know_is_told_with_its_line(
    logs: Path, tmp_path: Path
) -> None:
    live = "live:\n  rates:\n    item: {key: [item], of: [click, clik], half_life: [1d]}\n"
    config = _config(tmp_path, ("labels:\n", f"{live}labels:\n"))
    status, text = _check(config, logs)
    line = next(at for at, each in enumerate(config.read_text().splitlines(), 1) if "clik]" in each or "clik," in each)
    assert status == 1
    assert f"error {config}: line {line}, live.rates.item.of: 'clik'; never happens in the log; allowed: click" in text


def test_logs_are_no_configuration(logs: Path) -> None:
    done = execute(f"minutely check {logs / 'impressions.csv'}")
    assert done.returncode == 1
    assert (
        "impressions.csv: file: a text or a number; is no configuration; allowed: YAML with keys name, " in done.stderr
    )


def test_all_mistakes_of_config_and_data_at_once(logs: Path, tmp_path: Path) -> None:
    data = _copy(logs, tmp_path)
    lines = (data / "impressions.csv").read_text().splitlines()
    lines[5] = "soon" + lines[5][lines[5].index(",") :]
    (data / "impressions.csv").write_text("\n".join(lines) + "\n")
    config = _config(
        tmp_path, ("window: 10m", "window: 10"), ("column: brand, side", "column: brnd, side"), ("dim: 8", "dim: 0")
    )
    status, text = _check(config, data)
    assert status == 1
    for part in ("labels.click.window", "model.dim", "column brnd", "line 6, column time: 'soon'"):
        assert part in text, text


def test_an_empty_and_a_cut_file(logs: Path, tmp_path: Path) -> None:
    data = _copy(logs, tmp_path)
    (data / "impressions.csv").write_bytes(b"")
    whole = (data / "items.parquet").read_bytes()
    (data / "items.parquet").write_bytes(whole[: len(whole) // 2])
    status, text = _check(_config(tmp_path), data)
    assert status == 1
    assert "impressions.csv: file: 0 bytes" in text
    assert "items.parquet: file" in text
    assert "whole Parquet file" in text


def test_broken_rows_are_dead_letters_of_a_replay(logs: Path, tmp_path: Path) -> None:
    data = _copy(logs, tmp_path)
    lines = (data / "impressions.csv").read_text().splitlines()
    lines[10] = lines[10].replace("17", "never,17", 1)  # a column too many
    lines[20] = "x" + lines[20]
    lines[30] = "99" + lines[30]  # in the far future
    (data / "impressions.csv").write_text("\n".join(lines[:400]) + "\n" + lines[400][:5] + "\n")
    out = tmp_path / "out"
    done = execute(f"minutely replay {_config(tmp_path)} --data {data} --out {out}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["impressions"] == summary["examples"] == 399 - 3
    reasons = summary["dead_letters_by_reason"]
    assert reasons["future"] == 1
    assert reasons["malformed"] == 3
    assert summary["dead_letters"] == sum(reasons.values())
    told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    shown = f"Dead letters: {told}. minutely dead-letters --run {out} shows them."
    assert shown in done.stdout
    assert shown in (out / "report.html").read_text()
    assert execute(f"minutely dead-letters --run {out}").returncode == 0


def test_a_folder_with_something_in_it_is_left_alone(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    done = execute(f"minutely replay {_config(tmp_path)} --data {logs} --out {tmp_path / 'out'}")
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_interrupt_leaves_a_whole_state(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [str(Path(sys.executable).parent / "minutely"), "replay", str(_config(tmp_path)), "--data", str(logs)]
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (out / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # the whole replay takes 3 s where the machine is fast
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in errors
    assert process.returncode == 130, printed + errors
    assert "Interrupted" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"]
    assert summary["impressions"] < 3000
    assert summary["replica_equals_table"]
    assert not list(out.rglob("*.tmp"))
    assert execute(f"minutely rows item i17 --run {out}").returncode in (0, 1)


def test_rows_shows_a_row_and_names_what_is_missing(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = _copy(logs, tmp_path)
    kept = (small / "impressions.csv").read_text().splitlines()[:300]
    (small / "impressions.csv").write_text("\n".join(kept) + "\n")
    events = (
        (small / "events.jsonl").read_text().splitlines()[:20]
    )  # later ones would move the time past the rows' expiry
    (small / "events.jsonl").write_text("\n".join(events) + "\n")
    assert execute(f"minutely replay {_config(tmp_path)} --data {small} --out {out}").returncode == 0
    item = kept[1].rsplit(",", 1)[1]
    found = execute(f"minutely rows item {item} --run {out}")
    assert found.returncode == 0, found.stderr
    for part in ("embedding norm", "count", "last seen", "last changed in version"):
        assert part in found.stdout
    for command, said in (
        (f"minutely rows item nowhere --run {out}", "not among"),
        (f"minutely rows itm i1 --run {out}", "allowed: user, item"),
        (f"minutely rows item i1 --run {tmp_path / 'none'}", "no run there"),
    ):
        done = execute(command)
        assert done.returncode == 1
        assert said in done.stderr


def test_help_check_and_the_joiner_need_no_torch(logs: Path, tmp_path: Path) -> None:
    """Loading it takes seconds, and these come at once; a joiner has other use for the memory."""
    check = ["check", str(_config(tmp_path)), "--data", str(logs)]
    code = "from minutely.cli import cli; cli(['replay', '--help'], standalone_mode=False)"
    code += (
        f"; cli({check}, standalone_mode=False); import minutely.services.join, sys; assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "--sync-every" in done.stdout and "impressions" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--since 2026-01-01 --metrics 127.0.0.1:9464", "--since: only with --from archive"),
        ("--archive a --run b", "--archive, --run: only with --from archive"),
        ("--pass-over 0:1-2", "--pass-over: only with --resume"),
        ("--from archive --deltas d --run r --until 2026-01-01", "--until, --run: not with --deltas"),
        ("--from archive --metrics 127.0.0.1:9464", "--metrics: not without --deltas"),
        ("--from archive --since 2026-01-02 --until 2026-01-01", "--until is not after --since"),
    ],
)
def test_options_of_train_that_do_not_go_together(options: str, said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["train", str(_config(tmp_path)), *options.split()])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("offsets", ["0:9-5", "0", "0:", "0:1-", "x:1-2", "0:-1-2", "0:1-2-3", "0:1e3"])
def test_offsets_to_pass_over_are_a_partition_and_a_range(tmp_path: Path, offsets: str) -> None:
    done = CliRunner().invoke(cli, ["train", str(_config(tmp_path)), "--resume", "--pass-over", offsets])
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert f"{offsets!r}; allowed: a partition and offsets, as in 0:120 or 0:120-140" in said


def test_only_partitions_that_there_are_are_passed_over(tmp_path: Path) -> None:
    command = ["train", str(_config(tmp_path)), "--resume", "--pass-over", "0:5", "--pass-over", "12:120-140"]
    done = CliRunner().invoke(cli, command)
    assert (done.exit_code, done.output) == (1, "error shop: --pass-over: 12; allowed: partitions 0 to 5\n")


def test_an_archive_that_is_nowhere_is_named(tmp_path: Path) -> None:
    config = str(_config(tmp_path))
    for command in (["archive", config], ["train", config, "--from", "archive", "--deltas", str(tmp_path / "deltas")]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 1
        assert "error shop: archive.dir: missing; allowed: archive.dir in the config, or --archive\n" in done.output
