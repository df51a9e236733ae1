"""The data room: episodes as flat tensors, windows drawn from them on the device, normalisers, file formats."""

from madiff.data.normalizers import Normalizer, make_normalizer
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler, returns_to_go

__all__ = ["EpisodeStore", "Normalizer", "WindowSampler", "make_normalizer", "returns_to_go"]
