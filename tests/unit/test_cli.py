"""The command line without a server: help, errors and exit codes, and what the docs say of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import cdc
from cdc.cli import main, output, reference

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = sorted(reference.helps())
CONFIG = """\
name: shop
source: {url: "mysql://u@127.0.0.1:1"}
lake: lake
tables: [shop.orders]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAKESYNC_CONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = reference.helps()[command]
    lines = text.splitlines()
    example = lines[lines.index("  Example:") + 1]
    assert example.strip().startswith(f"lakesync {command}")
    assert len(lines[2].strip()) > 10
    options = "\n".join(lines[lines.index("Options:") + 1 :])
    for option in re.split(r"\n(?=  -)", options):
        assert len(option.split("  ", 2)[-1].split()) > 1, f"no help: {option}"


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_docs_say_what_the_code_says(page: str) -> None:
    text = (DOCS / page).read_text()
    assert reference.updated(page, text) == text, "run: python -m cdc.cli.reference docs"


def test_the_commands_of_the_design_are_there() -> None:
    assert set(COMMANDS) == {
        "init",
        "check",
        "add",
        "remove",
        "run",
        "status",
        "resume",
        "resync",
        "skip",
        "snapshot",
        "optimize",
        "reconcile",
        "report",
        "log",
        "schema",
        "trace rebuild",
        "trace status",
        "wait",
    }


def test_what_the_package_gives() -> None:
    for name in cdc.__all__:
        assert getattr(cdc, name) is not None
    public = {n for n in vars(cdc) if not n.startswith("_")} - {"annotations", "Any", "TYPE_CHECKING"}
    modules = {n for n in public if getattr(cdc, n).__class__.__name__ == "module"}
    assert public - modules - {"PackageNotFoundError", "version"} == set(cdc.__all__) - {"__version__"} - (
        {"Pipeline", "PipelineStatus"} - public
    )
    with pytest.raises(AttributeError):
        _ = cdc.Pipelin


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command.split()[0]} " in out


def test_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lakesync {cdc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nope"], "No such command"),
        (["status", "--nope"], "--nope"),
        (["run", "--node", "x"], "'x' is not one of"),
        (["init"], "--source"),
        (["add"], "TABLE"),
        (["log", "--from", "x"], "--from"),
        (["status"], "lakesync.yaml"),
        (["-c", "none.yaml", "check"], "none.yaml"),
        (["check", "-c", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_use_is_two_and_one_error(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("error:") == 1
    assert what in captured.err
    assert "hint: " in captured.err
    assert "Traceback" not in captured.err


def test_an_error_for_machines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = orjson.loads(captured.err)["error"]
    assert set(error) == {"code", "what", "where", "hint"}
    assert error["code"] == "Config"


def test_the_file_may_be_named_in_the_environment(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "other.yaml").write_text(CONFIG)
    monkeypatch.setenv("LAKESYNC_CONFIG", str(here / "other.yaml"))
    assert main(["skip", "11111111-1111-1111-1111-111111111111:7"]) == 0
    assert "recorded (#1)" in capsys.readouterr().out


def test_requests_are_recorded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "lakesync.yaml").write_text(CONFIG)
    assert main(["resync", "shop.orders", "--json"]) == 0
    said = orjson.loads(capsys.readouterr().out)
    assert not said["running"]
    assert [(r["number"], r["argument"], r["outcome"]) for r in said["requests"]] == [(1, "shop.orders", None)]
    for arguments, what in (
        (["resync", "shop.other"], "not a table of this pipeline"),
        (["resync"], "name tables"),
        (["resync", "shop.orders", "--all"], "name tables"),
        (["resume", "shop.orders"], "the table is new, not stopped"),
        (["skip", "7"], "not the GTID of one transaction"),
        (["skip", "11111111-1111-1111-1111-111111111111:1-7"], "not the GTID of one transaction"),
    ):
        assert main(arguments) == 2
        assert what in capsys.readouterr().err


def test_init_add_nothing_remove(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--source", "mysql://u:hunter2@127.0.0.1:1", "--lake", "lake"]) == 0
    captured = capsys.readouterr()
    assert "lakesync check" in captured.out
    assert "hunter2" not in captured.out
    assert main(["init", "--source", "mysql://u@127.0.0.1:1", "--lake", "lake"]) == 2
    assert main(["add", "shop.orders"]) == 3  # nobody listens there
    assert main(["add", "shop.orders", "--type", "a=int"]) == 2
    assert main(["remove", "shop.orders"]) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_status_of_a_pipeline_that_never_ran(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "lakesync.yaml").write_text(CONFIG)
    assert main(["status", "--json"]) == 0
    status = orjson.loads(capsys.readouterr().out)
    assert status["version"] == 1
    assert not status["running"]
    assert [(t["table"], t["phase"], t["lake"], t["lag_ms"]) for t in status["tables"]] == [
        ("shop.orders", "new", None, None)
    ]
    assert [p["code"] for p in status["problems"]] == ["SourceUnavailable"]
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "not running" in out
    assert "shop.orders" in out


def test_the_docs_describe_every_key_of_status(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "lakesync.yaml").write_text(CONFIG)
    main(["status", "--json"])
    page = (DOCS / "cli.md").read_text()
    for key in orjson.loads(capsys.readouterr().out):
        assert f"`{key}" in page, key


def test_an_unexpected_exception_is_one_line_and_a_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "lakesync.yaml").write_text(CONFIG)

    def broken(_: object) -> None:
        raise ValueError("hunter2")

    monkeypatch.setattr("cdc.pipeline.status.collect", broken)
    assert main(["status"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected ValueError in lakesync status\nwhere: traceback in ")
    assert "hunter2" not in err
    path = Path(err.splitlines()[1].removeprefix("where: traceback in "))
    assert path.parent == here / ".lakesync" or path.parent.name == "tmp"
    assert "broken" in path.read_text()


def test_interrupted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "lakesync.yaml").write_text(CONFIG)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cdc.pipeline.status.collect", interrupted)
    assert main(["status"]) == 130


def test_whoever_reads_may_go_away() -> None:
    code = "import sys; from cdc.cli import main; sys.exit(main(['schema']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "?"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1500, "1.5 s"),
        (119_000, "119.0 s"),
        (120_000, "2.0 min"),
        (7_200_000, "2.0 h"),
        (172_800_000, "2.0 d"),
    ],
)
def test_durations_for_people(ms: int | None, text: str) -> None:
    assert output.duration(ms) == text


def test_every_command_that_is_named_anywhere_exists() -> None:
    root = DOCS.parent
    pages = [
        *root.glob("*.md"),
        *DOCS.glob("*.md"),
        *(p for p in root.glob("configs/**/*") if p.is_file()),
        root / "Dockerfile",
    ]
    sources = [p for package in ("cdc", "snapshot", "reconcile") for p in (root / package).rglob("*.py")]
    for path in (*pages, *sources):
        for verb, rest in re.findall(r"`lakesync (?:-c \S+ )?([a-z]+)([^`\n]*)`", path.read_text()):
            name = f"{verb}{re.match(r'( [a-z]+)?', rest)[0]}" if verb == "trace" else verb  # type: ignore[index]
            if name == verb and any(c.startswith(f"{verb} ") for c in COMMANDS):
                continue  # a group of commands
            assert name in COMMANDS, f"{path}: lakesync {name}"
            for option in re.findall(r"--[a-z][a-z-]*", rest):
                assert option in reference.helps()[name], f"{path}: lakesync {name} {option}"
