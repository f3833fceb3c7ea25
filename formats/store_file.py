"""The file under a writer that may die: locked, unbuffered, and with something whole to leave behind."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from saecodec.errors import OutputError
from saecodec.formats.atomic import PARTIAL, check_output_path, new_partial, publish
from saecodec.formats.file_lock import is_file, locked

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class StoreFile:
    """A new file, which is `path.partial` until it is published, or one that exists, to write behind its end.

    raw: for reading and writing. end: size of what was there. left: the name of the file that a writer which fails
    leaves. OutputError when it cannot be written, or another process writes it.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool, force: bool) -> None:
        self.path, self._append, self._force = os.fspath(path), append, force
        self.left = self.path if append else self.path + PARTIAL
        self._open = ExitStack()
        with ExitStack() as opened:
            if append:
                self._name = os.path.realpath(path)
                if not os.path.isfile(self._name):
                    raise OutputError(
                        f"{self.path}: there is no such file to append to; leave --append (append=True) out to make one"
                    )
                with self.writing():
                    self._known = opened.enter_context(locked(self._name, path))
            else:
                check_output_path(path, force=force)
                self._name = opened.enter_context(new_partial(path, force=force, keep=True))
            self.raw = opened.enter_context(_Whole(self._name, "r+"))
            self.end = self.raw.seek(0, os.SEEK_END)
            self._open = opened.pop_all()

    def sync(self) -> None:
        """See that what was written outlives the machine."""
        with self.writing():
            os.fsync(self.raw.fileno())

    def cut(self, size: int) -> None:
        """Leave out what lies behind `size`: a write that failed on its way."""
        self.raw.truncate(size)
        self.raw.seek(size)

    def publish(self) -> None:
        """Give a complete file its name. OutputError when that is taken, or what was appended to is not there now."""
        self.sync()
        if self._append:
            if not is_file(self._name, self._known):
                raise OutputError(
                    f"{self.path}: was removed or replaced while rows were appended to it, and they went with it: "
                    "append them again to what is there now"
                )
        else:
            publish(self.path, self._name, force=self._force)
        self.close()

    def discard(self) -> None:
        """Leave what was there before: nothing, or the file as it was."""
        try:
            with self.writing():
                if self._append:
                    self.cut(self.end)
                    with contextlib.suppress(OSError):  # perhaps why this is taken back
                        os.fsync(self.raw.fileno())
                else:
                    os.unlink(self._name)
        finally:
            self.close()

    def close(self) -> None:
        """Let the file and its lock go."""
        with contextlib.suppress(OSError):
            self._open.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an OSError into an OutputError that says where the complete chunks are."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror or error}); the chunks that are complete are in "
                f"{self.left}"
            ) from error


class _Whole(io.FileIO):
    """A file without a buffer, whose writes write all."""

    def write(self, data: ReadableBuffer, /) -> int:
        left = memoryview(data).cast("B")
        n = len(left)
        while left:
            left = left[super().write(left) :]
        return n
