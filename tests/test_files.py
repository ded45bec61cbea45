"""Locks on file systems that have none."""

import errno
import fcntl
import logging

import pytest

from avspk.common.files import hold_for_life


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog, number):
    """Lustre without its option `flock`: a second run in the folder would not be noticed."""

    def lockf(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    monkeypatch.setattr(logging.getLogger("avspk"), "propagate", True)  # a run of another test may have ended it
    held = hold_for_life(tmp_path / "lock")
    assert held is not None
    held.close()
    assert f"{tmp_path}: this file system has no locks" in caplog.text
