"""The peer families, by name."""

from __future__ import annotations

from saecodec.peers.faiss import PQ, RQ
from saecodec.peers.pca import PCA_FAMILY
from saecodec.peers.peer import PeerFamily
from saecodec.peers.sz3 import SZ3
from saecodec.peers.turboquant import TURBOQUANT
from saecodec.peers.uniform import UNIFORM
from saecodec.peers.zfp import ZFP


def families() -> list[PeerFamily]:
    """Every family, whether or not its package is installed; nothing of these packages is imported."""
    return [PCA_FAMILY, UNIFORM, TURBOQUANT, RQ, PQ, SZ3, ZFP]
