"""TEMPORARY stub."""
from dataclasses import dataclass
from typing import Any
@dataclass(frozen=True)
class Side:
    path: str; label: str; table: Any; metadata: Any; md5: str; format: str
@dataclass(frozen=True)
class ModelDiff:
    path: str; kind: str; cosine: Any=None; relative_l2: Any=None; tensors_changed: int=0; reason: str=""; hyperparameters: tuple=(); metrics: tuple=(); data: tuple=(); bytes_equal: bool=False
def compare(old, new):
    return ModelDiff((new or old).path, "fine-tune")
