"""Run an exported ensemble without torch: numpy and onnxruntime only."""

from .local import AbsentAnswer, Answer, LocalEnsemble

__all__ = ["AbsentAnswer", "Answer", "LocalEnsemble"]
