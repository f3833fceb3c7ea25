"""A task whose shards may kill the process that codes them; a module of its own, so that processes can import it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from saecodec.formats.folder_manifest import Line
from saecodec.formats.folder_plan import Shard
from saecodec.formats.folder_work import EncodeFolder, Work


@dataclass(frozen=True, kw_only=True)
class DeadlyFolder(EncodeFolder):
    """Shards named "deadly" kill their process, those named "once" the first time; those named "slow" take a minute."""

    def load(self) -> Work:
        work = super().load()

        def code(shard: Shard) -> Line:
            mark = Path(f"{self.dst}.{shard.source}")
            if "deadly" in shard.source or ("once" in shard.source and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if "slow" in shard.source:
                time.sleep(60)
            return work.code(shard)

        return Work(code, work.same)
