"""`python -m dev.fuzz [TARGET…]`: fuzz the native decoder, every target for some seconds, from the seeds and what earlier runs found.

libFuzzer with a stable compiler: the instrumentation is a pass of LLVM that needs no nightly. Nothing is installed; beside cargo
a C++ compiler is needed, for libFuzzer itself. What was built and found stays in the cache folder. An input that makes a target
panic, hang or take too much memory is kept and named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dev import packages

FUZZ = packages.PROJECT_ROOT / "native/fuzz"
TARGETS = tuple(sorted(path.stem for path in (FUZZ / "targets").glob("*.rs")))

PASSES = (
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
)
LIMITS = (
    "-timeout=10",  # seconds for one input
    "-rss_limit_mb=1024",
    "-malloc_limit_mb=256",  # for one allocation: inputs have a few KiB
    "-max_len=16384",
    "-print_final_stats=1",
)
FINAL = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+).*?corp: (\d+)")


@dataclass(frozen=True)
class Run:
    """What came of one target."""

    target: str
    code: int
    said: str
    crashes: tuple[Path, ...]

    def __str__(self) -> str:
        if self.code == 0 and (found := FINAL.search(self.said)):
            inputs, covered, kept = (f"{int(number):,}" for number in found.groups())
            return f"{self.target:8} {inputs:>12} inputs, {covered} edges, {kept} kept"
        tail = "\n    ".join(line for line in self.said.splitlines() if not line.startswith(("#", "stat::")))
        kept = "".join(f"\n  repeat it: python -m dev.fuzz {self.target} --input {path}" for path in self.crashes)
        return f"{self.target} FAILED\n    {tail[-4000:]}{kept}"


def folder() -> Path:
    """What was built and found."""
    return packages.cache_folder() / "fuzz"


def build() -> Path:
    """The folder of the targets' programs. Raises CalledProcessError; cargo says why."""
    compiler = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = str(re.findall(r"(?m)^host: (.+)$", compiler)[0])
    # Named, so that the flags are for the targets alone and not for what builds them.
    command = [
        "cargo",
        "build",
        "--quiet",
        "--locked",
        "--release",
        "--target",
        host,
        "--manifest-path",
        str(FUZZ / "Cargo.toml"),
    ]
    target = folder() / "target"
    environment = {**os.environ, "RUSTFLAGS": " ".join(PASSES), "CARGO_TARGET_DIR": str(target)}
    subprocess.run(command, check=True, env=environment)
    return target / host / "release"


def run(programs: Path, target: str, seconds: int) -> Run:
    """Fuzz one target."""
    corpus, crashes = folder() / "corpus" / target, folder() / "crashes" / target
    for made in (corpus, crashes):
        made.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    # Reproducers of what was once found are seeds like the others: a seed that fails ends the run at once.
    where = (f"-artifact_prefix={crashes}/", str(corpus), str(FUZZ / "seeds" / target))
    done = subprocess.run(
        [str(programs / target), f"-max_total_time={seconds}", *LIMITS, *where],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return Run(target, done.returncode, done.stdout, tuple(sorted(set(crashes.iterdir()) - before)))


def main() -> int:
    """Build, run, and say what was found; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m dev.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--input", type=Path, help="run one target on this file alone")
    options = parser.parse_args()
    targets = options.targets or TARGETS
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    programs = build()
    if options.input:
        return subprocess.run([str(programs / targets[0]), *LIMITS, str(options.input)], check=False).returncode
    failed = False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(lambda target: run(programs, target, options.seconds), targets):
            print(result, flush=True)
            failed |= result.code != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
