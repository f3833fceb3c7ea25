"""A task one of whose shards kills the process that codes it; a module of its own, so that processes can import it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from saecodec.formats.folder_manifest import Line
from saecodec.formats.folder_plan import Shard
from saecodec.formats.folder_work import EncodeFolder, Work


@dataclass(frozen=True, kw_only=True)
class DeadlyFolder(EncodeFolder):
    """Shards named "deadly" kill their process."""

    def load(self) -> Work:
        work = super().load()

        def code(shard: Shard) -> Line:
            if "deadly" in shard.source:
                os.kill(os.getpid(), signal.SIGKILL)
            return work.code(shard)

        return Work(code, work.same)
