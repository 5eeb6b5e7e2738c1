"""Calibration: a temperature that makes a model as sure as it is right, as far as the validation images can tell."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from glyphs.core.protocols import Loader, run_model
from glyphs.evaluation.metrics import calibration_error
from glyphs.models.checkpoint import build_model, load_checkpoint, write_checkpoint
from glyphs.models.network import as_floats

# Before the images have said anything, log T is taken to be normal around 0 with this standard deviation: two of three
# temperatures lie between 1/1.5 and 1.5.  Eight networks, trained on 100 to 5,000 pictures of 3 to 47 classes with the
# default label smoothing, needed log T of -0.19 to -0.55, root mean square 0.39, as measured on 1,500 other images or
# more; benchmarks/calibration.py prints this for others.
PRIOR_DEVIATION = 0.4
MOST_LOG_T = math.log(100)  # of log T, either way: eleven deviations of the prior, so that no optimum lies at an end
STEP = 0.01  # of log T, over which the curvature at the optimum is taken


@dataclass(frozen=True)
class Temperature:
    """What a model's logits are divided by, and what it rests on.

    Attributes
    ----------
    value : above 0; below 1 it makes the model surer.
    images : that it was fitted to.
    evidence : the part of what is known of log T that comes from them and not from the prior, from 0 to 1.
    refused : the value that the images ask for, where it would make the calibration error on themselves worse, and
        `value` is 1 therefore; else None.
    """

    value: float
    images: int
    evidence: float
    refused: float | None = None

    def __str__(self) -> str:
        words = f"temperature {self.value:.2f}, from {self.images:,} validation images"
        if self.refused is not None:
            words += f"; the {self.refused:.2f} that they ask for would make the calibration error on themselves worse"
        elif self.evidence < 0.5:
            words += (
                "; these are too few to tell how sure the model may be, so that it stays near 1: hold out more for "
                "validation, by more pictures or a larger --val-split, before you rely on confidences"
            )
        return words


def fit_temperature(logits: Tensor, labels: Tensor, *, class_prior: str = "data") -> Temperature:
    """The likeliest number to divide logits by, given images and what is known of such numbers without any.

    It changes no prediction, only how sure the model is of it.  Without the prior it would be the temperature of Guo et
    al. (arXiv 1706.04599, section 4.2), which is 0 where no validation image is wrong.  The prior is worth about as
    much as 50 images: of many images it changes nothing.

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
    weights *= weights.sum() / weights.square().sum()  # so that their sum is the number of images they are worth

    def loss(log_t: float) -> float:
        losses = F.cross_entropy(logits * math.exp(-log_t), labels, reduction="none")
        return float(weights @ losses)

    def objective(log_t: float) -> float:
        return loss(log_t) + 0.5 * (log_t / PRIOR_DEVIATION) ** 2

    found = float(minimize_scalar(objective, bounds=(-MOST_LOG_T, MOST_LOG_T), method="bounded").x)
    information = max(0.0, (loss(found - STEP) - 2 * loss(found) + loss(found + STEP)) / STEP**2)
    evidence = information / (information + PRIOR_DEVIATION**-2)
    correct = logits.argmax(dim=1) == labels
    before, after = (
        calibration_error((logits / t).softmax(dim=1).amax(dim=1), correct, weights) for t in (1.0, math.exp(found))
    )
    if after > before:
        return Temperature(1.0, len(labels), evidence, math.exp(found))
    return Temperature(math.exp(found), len(labels), evidence)


def calibrate_checkpoint(path: Path, val_loader: Loader, device: torch.device, arch: str | None = None) -> Temperature:
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
    content["model"]["temperature"] = torch.tensor(temperature.value)
    content["metrics"]["temperature"] = temperature.value
    write_checkpoint(path, content)
    return temperature
