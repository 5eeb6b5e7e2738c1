"""ModelComparator: several models side by side."""

import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glyphs.core.arrays import Probabilities
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.core.files import valid_utf8
from glyphs.core.progress import progress
from glyphs.core.protocols import Loader, run_model
from glyphs.core.timing import UNSTEADY_WORDS, unsteady
from glyphs.evaluation.analyzer import ModelAnalyzer, measure
from glyphs.evaluation.comparison import COSTS, MEASURED, SPEEDS, STORED, Comparison, differences, pareto_front
from glyphs.evaluation.metrics import Evaluation, metrics
from glyphs.models.network import as_bytes
from glyphs.models.runtime import Network
from glyphs.pictures.plain import InputForm

log = logging.getLogger(__name__)


class ModelComparator:
    """Compares models with each other, on the same images where there are any.

    Parameters
    ----------
    models : two or more, each as ModelAnalyzer takes them.
    device, batch_size, arch : as there.

    Raises
    ------
    CheckpointError, ConfigError : as ModelAnalyzer does; ConfigError where there are fewer than two models.
    """

    def __init__(
        self,
        models: Sequence[str | Path],
        device: str = "auto",
        batch_size: int = Config.batch_size,
        *,
        arch: str | None = None,
    ) -> None:
        if len(models) < 2:
            raise ConfigError("a comparison needs two models or more")
        taken_apart = progress(models, desc="taking models apart", unit="model", leave=False)
        self.analyzers = [ModelAnalyzer(model, device, batch_size, arch=arch) for model in taken_apart]
        letters = string.ascii_uppercase
        self.ids = [letters[i] if i < len(letters) else f"M{i + 1}" for i in range(len(models))]

    def compare(
        self,
        loader: Loader | Mapping[InputForm, Loader] | None = None,
        class_names: Sequence[str] | None = None,
        split: str = "",
    ) -> Comparison:
        """Measure everything.

        Parameters
        ----------
        loader, class_names, split : test images with labels, the classes that they have, and what to call them; all
            models see the same.  Where models see pictures of different sizes or colours, a loader of the same
            pictures for each form.  Without them, the metrics that are stored with the models are shown.

        Raises
        ------
        CheckpointError : no model knows the classes of the test images.
        """
        notes: list[str] = []
        evaluations: dict[str, Evaluation] = {}
        if loader is not None:
            evaluations = self._evaluate(loader, list(class_names or ()), notes)
        for id, evaluation in evaluations.items():
            if evaluation.refused:
                notes.append(
                    f"{evaluation.refused:,} more test pictures could not be prepared for {id}, which never saw them: "
                    f"with these counted as wrong its accuracy is {evaluation.accuracy_with_refused:.2%}"
                )
        log.info("timing the models, in turns")
        models = [
            {
                "id": id,
                "path": valid_utf8(str(analyzer.path)),
                "classes": len(analyzer.class_names),
                "parameters": analyzer.count_parameters()["total"],
                **analyzer.compute_size(),
                "multiply_adds": analyzer.count_multiply_adds(),
                **speeds(timings),
                **(metrics(evaluations[id]) if id in evaluations else {}),
                **({} if loader is not None else stored_metrics(analyzer)),
            }
            for id, analyzer, timings in zip(self.ids, self.analyzers, measure(self.analyzers), strict=True)
        ]
        if loader is None:
            notes.append(
                "Stored metrics are those of each model's own training: to compare on the same images, and to learn "
                "whether a difference is real, give test data by --data-dir"
            )
            if len({tuple(analyzer.class_names) for analyzer in self.analyzers}) > 1:
                counts = ", ".join(f"{id} {len(a.class_names)}" for id, a in zip(self.ids, self.analyzers, strict=True))
                notes.append(f"The models tell different classes apart ({counts}): accuracies do not compare")
        if shaky := [model["id"] for model in models if unsteady(model["timings"])]:
            notes.append(f"The times of {', '.join(shaky)} {UNSTEADY_WORDS}")
        known = [
            row
            for row in (*(MEASURED if loader is not None else STORED), *COSTS, *SPEEDS)
            if any(model.get(row.key) is not None for model in models)
        ]
        quality = None
        if len({tuple(analyzer.class_names) for analyzer in self.analyzers}) == 1:
            # Only what all of them have: a test accuracy beside a validation accuracy would mislead.
            complete = (row for row in known if all(model.get(row.key) is not None for model in models))
            quality = next((row for row in complete if row.key.endswith("accuracy")), None)
        elif loader is not None and len(evaluations) > 1:
            quality = MEASURED[0]
        latency = next(row.key for row in SPEEDS if any(row.key in model for model in models))  # on the CPU if it can
        fronts = {}
        if quality is not None:
            gains = [model.get(quality.key) for model in models]
            for cost, key in (("size", "disk_bytes"), ("latency", latency)):
                fronts[cost] = pareto_front([model.get(key) for model in models], gains)
        test = None if loader is None else {"split": split, "images": len(next(iter(evaluations.values())).labels)}
        return Comparison(models, test, known, quality, latency, fronts, differences(evaluations), notes)

    def _evaluate(
        self, loader: Loader | Mapping[InputForm, Loader], class_names: list[str], notes: list[str]
    ) -> dict[str, Evaluation]:
        """Run the models that know the classes over the images, batch by batch, side by side."""
        chosen = {}
        for id, analyzer in zip(self.ids, self.analyzers, strict=True):
            if analyzer.class_names == class_names:
                chosen[id] = analyzer.networks[analyzer.devices[-1]]
            else:
                notes.append(
                    f"{id} knows {len(analyzer.class_names)} classes, the test images have {len(class_names)} others: "
                    "its accuracy cannot be measured on them"
                )
        if not chosen:
            raise CheckpointError(
                f"none of the models knows the {len(class_names)} classes of the test images; choose the data that "
                "they were trained on by --dataset and --split"
            )
        if not isinstance(loader, Mapping):
            return run_side_by_side(chosen, loader, class_names)
        found: dict[str, Evaluation] = {}
        forms = {id: analyzer.form for id, analyzer in zip(self.ids, self.analyzers, strict=True) if id in chosen}
        for form in dict.fromkeys(forms.values()):
            those = {id: network for id, network in chosen.items() if forms[id] == form}
            evaluated = run_side_by_side(those, loader[form], class_names)
            labels = [each.labels for each in (*found.values(), *evaluated.values())]
            if any(not torch.equal(labels[0], others) for others in labels):
                notes.append(
                    f"{', '.join(those)}: other pictures can be used for {form.words} ({form.mode}), so that "
                    "accuracies do not compare: they are left out"
                )
            else:
                found |= evaluated
        return {id: found[id] for id in self.ids if id in found}


def run_side_by_side(networks: Mapping[str, Network], loader: Loader, class_names: list[str]) -> dict[str, Evaluation]:
    """Run networks over the same images, batch by batch.  Raises CheckpointError for outputs that are not finite."""
    logits: dict[str, list[Tensor]] = {id: [] for id in networks}
    refused = getattr(loader, "refused", 0)
    labels = []

    def answers(images: Tensor) -> list[Probabilities]:
        pixels = as_bytes(images).numpy()  # what networks ask for, and what not every loader gives
        return [network(pixels) for network in networks.values()]

    answered_batches = run_model(answers, progress(loader, desc="comparing", unit="batch"), torch.device("cpu"))
    for _, truth, answered in answered_batches:
        labels.append(truth)
        for id, probabilities in zip(networks, answered, strict=True):
            # Log-probabilities are logits; the smallest float keeps 0 finite.
            known = torch.from_numpy(np.asarray(probabilities, np.float32))
            logits[id].append(known.clamp_min(torch.finfo(torch.float32).tiny).log())
    found = {}
    for id, batches in logits.items():
        evaluation = Evaluation(class_names, torch.cat(batches), torch.cat(labels), None, refused=refused)
        if not evaluation.logits.isfinite().all():
            raise CheckpointError(f"{id}: the model's outputs are not finite numbers: its weights are damaged")
        found[id] = evaluation
    return found


def speeds(timings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A model's timings as the rows of a comparison."""
    flat: dict[str, Any] = {"timings": list(timings)}
    for row in timings:
        if row["batch"] == 1:
            flat[f"latency_{row['device']}"] = row["seconds"]
        flat[f"throughput_{row['device']}"] = row["images_per_second"]  # the full batch comes last
    return flat


def stored_metrics(analyzer: ModelAnalyzer) -> dict[str, float]:
    """What a model's file, or the evaluation beside it, says of it, under the keys of STORED."""
    stored = analyzer.description.metrics
    test = stored.get("test")
    flat = {**stored, **{f"test_{key}": value for key, value in (test if isinstance(test, dict) else {}).items()}}
    return {row.key: flat[row.key] for row in STORED if isinstance(flat.get(row.key), (int, float))}
