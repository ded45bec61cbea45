"""Damaged files of every kind on every command: all use or reject a file alike, within seconds, and lose none.

The long form takes AVSPK_FUZZ_MINUTES (5) and writes its findings to AVSPK_FUZZ_FINDINGS, a folder. Its judge is a
separate process, so a crash in native code is a finding and does not end the test.
"""

import hashlib
import itertools
import os
import time
from pathlib import Path

import pytest
from fuzz import Child, Judge, damaged, sources
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

EVERYTHING = list(HealthCheck)
BRIEF = ["plain.wav", "FLOAT.wav", "44100_hz.wav", "plain.flac", "vorbis.ogg", "opus.ogg", "mp3.mp3", "aac.m4a"]
BRIEF += ["aac.mka", "a.aiff", "a.au", "a.w64", "a.caf", "a.mp4", "a.mkv", "a.avi", "a.mpg", "a.ts", "a.flv", "a.webm"]


def test_damaged_files_are_used_or_refused_alike(tmp_path):
    judge, contents = Judge(tmp_path), sources(tmp_path, [*BRIEF, "a.mov"])

    @settings(max_examples=15, derandomize=True, database=None, suppress_health_check=EVERYTHING)
    @given(st.lists(damaged(contents), min_size=8, max_size=8))
    def check(files):
        judge(files)

    check()


@pytest.mark.long
def test_damaged_files_for_long(tmp_path):
    end = time.monotonic() + 60 * float(os.environ.get("AVSPK_FUZZ_MINUTES", "5"))
    folder = Path(os.environ.get("AVSPK_FUZZ_FINDINGS", tmp_path / "findings"))
    folder.mkdir(parents=True, exist_ok=True)
    contents, child, findings, tried = sources(tmp_path), Child(), [], 0
    first = int(time.time())
    phases = [Phase.generate]

    def run(number: int) -> None:
        @seed(number)
        @settings(max_examples=500, phases=phases, database=None, suppress_health_check=EVERYTHING)
        @given(damaged(contents))
        def check(file):
            nonlocal tried
            if time.monotonic() > end:
                return
            tried += 1
            if finding := child(*file):
                path = folder / f"{hashlib.sha256(file[1]).hexdigest()[:12]}_{file[0]}"
                path.write_bytes(file[1])
                findings.append(f"{path}: {finding.strip().splitlines()[-1]}")
                path.with_name(path.name + ".why").write_text(finding)

        check()

    for number in itertools.count(first):
        run(number)
        (folder / "progress").write_text(f"{tried} files, {len(findings)} findings\n")
        if time.monotonic() > end:
            break
    child.close()
    assert tried
    assert not findings, "\n".join(findings)
