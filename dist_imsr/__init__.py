"""Distributed training of multi-interest sequential recommenders, span by span (IMSR, ICDE 2023).

``from dist_imsr import prepare, train, evaluate, recommend`` does in Python what the scripts in launch/ do, with the
configurations of the scripts, such as ``TrainConfig``; see `dist_imsr.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_imsr.api import (
        EvaluateConfig,
        PrepareConfig,
        RecommendConfig,
        TrainConfig,
        evaluate,
        prepare,
        recommend,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "EvaluateConfig",
    "PrepareConfig",
    "RecommendConfig",
    "TrainConfig",
    "evaluate",
    "prepare",
    "recommend",
    "train",
]


def __getattr__(name: str) -> Any:
    # Not at import: the doctor imports the package where torch or TorchRec may be broken.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dist_imsr import api

    return getattr(api, name)
