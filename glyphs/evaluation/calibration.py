"""Calibration: a temperature that makes a model as sure as it is right."""

from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from glyphs.core.protocols import Loader, run_model
from glyphs.models.checkpoint import build_model, load_checkpoint, write_checkpoint
from glyphs.models.network import as_floats

COLDEST, HOTTEST = 0.05, 20.0  # bounds for a validation part too small or too easy to say anything


def fit_temperature(logits: Tensor, labels: Tensor, *, class_prior: str = "data") -> float:
    """The number to divide logits by so that their cross-entropy is lowest (Guo et al., arXiv 1706.04599, section 4.2).

    It changes no prediction, only how sure the model is of it.

    Parameters
    ----------
    logits : float [N, C], of images that the model was not trained on.
    labels : int64 [N].
    class_prior : "uniform" to let every class count alike, "data" to let every image.
    """
    logits = logits.double()
    weights = torch.ones(len(labels), dtype=torch.float64)
    if class_prior == "uniform":
        weights /= torch.bincount(labels)[labels]

    def loss(inverse: float) -> float:
        losses = F.cross_entropy(logits * inverse, labels, reduction="none")
        return float((weights * losses).sum() / weights.sum())

    # Convex in the inverse of the temperature.
    return 1 / float(minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded").x)


def calibrate_checkpoint(path: Path, val_loader: Loader, device: torch.device, arch: str | None = None) -> float:
    """Fit a temperature to the model of a checkpoint, store it in the file, and return it.

    arch : as for `glyphs.models.checkpoint.build_model`.

    Raises
    ------
    GlyphError : the file cannot be read or written.
    """
    content = load_checkpoint(path)
    model, config = build_model(content, path, arch)
    model.temperature.fill_(1)
    model.to(device)
    logits, labels = [], []
    for _, truth, output in run_model(lambda images: model(as_floats(images)), val_loader, device):
        logits.append(output.float().cpu())
        labels.append(truth.cpu())
    temperature = fit_temperature(torch.cat(logits), torch.cat(labels), class_prior=config.class_prior)
    content["model"]["temperature"] = torch.tensor(temperature)
    content["metrics"]["temperature"] = temperature
    write_checkpoint(path, content)
    return temperature
