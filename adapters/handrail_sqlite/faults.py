"""What SQLite's errors mean for the user: which pass with waiting, and one line each. It handles none of them."""

from __future__ import annotations

import enum
import errno
import os
from pathlib import Path

import apsw

from handrail.errors import BrokerError, SchemaError


class Kind(enum.Enum):
    """What can be done about a fault."""

    WAIT = "passes when somebody else lets go"
    FULL = "passes when there is room again"
    BROKEN = "does not pass by waiting"


def kind_of(error: BaseException) -> Kind:
    """What waiting does for *error*."""
    if isinstance(error, apsw.FullError):
        return Kind.FULL
    if isinstance(error, OSError):
        return Kind.FULL if error.errno in {errno.ENOSPC, errno.EDQUOT} else Kind.BROKEN
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return Kind.WAIT
    # growing the shared memory beside the WAL fails like this on a full disk
    if isinstance(error, apsw.IOError):
        return Kind.FULL if _extended(error) in _NO_ROOM else Kind.WAIT
    return Kind.BROKEN


_NO_ROOM = {apsw.SQLITE_IOERR_SHMSIZE, apsw.SQLITE_IOERR_WRITE}


def _extended(error: BaseException) -> int:
    # every apsw error has it; apsw's type stubs know it of the root alone
    code: int = getattr(error, "extendedresult", 0)
    return code


def explain(error: BaseException, file: Path) -> str:
    """*error* as one line: what is wrong with *file*, and the mend."""
    match error:
        case BrokerError():
            return str(error)
        case apsw.FullError():
            return f"{file}: the disk is full; free some space, and work goes on by itself"
        case apsw.ReadOnlyError() | apsw.PermissionsError() | PermissionError():
            return f"{file}: cannot be written; give this user the right to write it and its folder"
        case apsw.NotADBError():
            return f"{file}: is not a SQLite database; move it away or name another file"
        case apsw.CorruptError():
            return f"{file}: is damaged; stop all workers, then restore a copy or try: sqlite3 {file} .recover"
        case apsw.BusyError() | apsw.LockedError():
            return f"{file}: is locked by another program; close what has it open"
        case apsw.CantOpenError():
            return _cannot_open(file)
        case apsw.IOError() if _extended(error) in _NO_ROOM:
            return f"{file}: cannot be written, perhaps the disk is full; free some space, and work goes on by itself"
        case apsw.IOError():
            return f"{file}: the disk reports an error ({_text(error)}); check it and its file system"
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return f"{file}: the disk is full; free some space, and work goes on by itself"
        case OSError() if error.errno == errno.EROFS:
            return f"{file}: lies on a read-only file system; remount it or name another file"
        case NotADirectoryError() | FileExistsError():
            return f"{file}: a part of its path is a file, not a folder; name another file"
        case _:
            return f"{file}: {_text(error)}"


def _cannot_open(file: Path) -> str:
    if file.is_dir():
        return f"{file}: is a folder; name a file in it"
    if not os.access(file.parent, os.W_OK):
        return f"{file}: cannot be written; give this user the right to write it and its folder"
    return f"{file}: cannot be opened; check its folder and the rights of this user"


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def newer(file: Path, version: int, ours: int) -> SchemaError:
    return SchemaError(
        f"{file}: was written by a newer handrail (schema {version}, this one knows {ours}); upgrade handrail"
    )


def foreign(file: Path) -> SchemaError:
    return SchemaError(f"{file}: is the database of another program; name another file")
