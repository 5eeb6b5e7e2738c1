"""Evaluation: one pass over a test set, and the numbers, reports and pictures that follow from its logits."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glyphs.core.distributed import merge_rows, total, world_size
from glyphs.core.errors import CheckpointError, DataError
from glyphs.core.progress import progress
from glyphs.core.protocols import Divisible, Loader, own_share, run_model
from glyphs.evaluation.metrics import Evaluation
from glyphs.models.network import as_bytes, as_floats, modes_kept


class Evaluator:
    """Runs a model over a test set.

    Parameters
    ----------
    model : any module that makes logits, [N, C], of images, float [N, channels, H, W] in [0, 1].  It and its parts,
        such as batch norms that were frozen, are left in the modes that they were in.
    class_names : in the order of the model's outputs.
    device : where to compute; by default where the model is.  The model is moved there.

    Raises
    ------
    CheckpointError : the model has another number of classes than there are names, in `evaluate`.

    Examples
    --------
    Any module and any loader will do:

    >>> import torch
    >>> from glyphs import Evaluator
    >>> labels = torch.arange(100) % 2
    >>> images = labels.view(-1, 1, 1, 1).float().expand(-1, 1, 28, 28)  # black or white
    >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=32)
    >>> class Brightness(torch.nn.Module):
    ...     def forward(self, images):
    ...         return torch.stack([1 - images.mean((1, 2, 3)), images.mean((1, 2, 3))], dim=1)
    >>> evaluation = Evaluator(Brightness(), ["black", "white"], "cpu").evaluate(loader)
    >>> evaluation.accuracy, evaluation.confusion.tolist()
    (1.0, [[50, 0], [0, 50]])
    """

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        device: torch.device | str | None = None,
    ) -> None:
        if device is None:
            device = next((weights.device for weights in model.parameters()), torch.device("cpu"))
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.class_names = list(class_names)

    def evaluate(self, loader: Loader) -> Evaluation:
        """Classify every image once.

        Where several processes work together, each classifies its share, and all get the whole.

        Parameters
        ----------
        loader : a sized iterable of batches: images [N, channels, H, W], uint8 or float in 0..1; labels int64 [N].
            Its attribute `refused`, where it has one, is how many pictures it leaves out.

        Raises
        ------
        DataError : there is no image, or a label outside the classes.
        CheckpointError : the model's outputs are not finite.
        ConfigError : the loader cannot be shared out among the processes there are.
        """
        refused = getattr(loader, "refused", 0)
        loader = own_share(loader)
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        mistakes: list[Tensor] = []
        with modes_kept(self.model):
            self.model.eval()
            batches = run_model(self._classify, loader, self.device)
            for images, truth, output in progress(batches, desc="evaluating", total=len(loader), unit="batch"):
                logits.append(output.float().cpu())
                labels.append(truth.cpu())
                # Only the images of mistakes are kept: they are few, and the only ones shown.
                wrong = logits[-1].argmax(dim=1) != labels[-1]
                mistakes.append(as_bytes(images[wrong.to(images.device)]).cpu())
        # Joined outside of inference mode, so that what is returned are ordinary tensors.
        if isinstance(loader, Divisible) and world_size() > 1:
            merged = self._merge(loader.places, torch.cat(logits), torch.cat(labels), torch.cat(mistakes))
            return dataclasses.replace(merged, refused=refused)
        return Evaluation(
            self.class_names,
            self._checked_logits(logits),
            self._checked_labels(labels),
            torch.cat(mistakes) if len({batch.shape[1:] for batch in mistakes}) == 1 else None,
            float(getattr(self.model, "temperature", 1.0)),
            refused,
        )

    def _classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(as_floats(images))
        if logits.shape != (len(images), len(self.class_names)):
            raise CheckpointError(
                f"the model answers {len(images)} images with {list(logits.shape)} numbers, but the data has "
                f"{len(self.class_names)} classes; evaluate it on the data set and split that it was trained on"
            )
        return logits

    def _merge(self, places: Tensor, logits: Tensor, labels: Tensor, images: Tensor) -> Evaluation:
        """One evaluation, in the undivided order, from what each process has: rows for `places`, images of mistakes."""
        count = int(total(torch.tensor(len(places))))
        own_mistakes = places[logits.argmax(dim=1) != labels]
        logits, labels = merge_rows(logits, places, count), merge_rows(labels, places, count)
        merged = Evaluation(
            self.class_names,
            self._checked_logits([logits]),
            self._checked_labels([labels]),
            None,
            float(getattr(self.model, "temperature", 1.0)),
        )
        at = torch.searchsorted(merged.mistakes, own_mistakes)
        return dataclasses.replace(merged, mistake_images=merge_rows(images, at, len(merged.mistakes)))

    def _checked_logits(self, batches: list[Tensor]) -> Tensor:
        if sum(map(len, batches)) == 0:
            raise DataError("there is no image to evaluate on")
        logits = torch.cat(batches)
        if not logits.isfinite().all():
            raise CheckpointError("the model's outputs are not finite numbers: its weights are damaged")
        return logits

    def _checked_labels(self, batches: list[Tensor]) -> Tensor:
        labels = torch.cat(batches)
        outside = ((labels < 0) | (labels >= len(self.class_names))).nonzero()
        if len(outside):
            at = int(outside[0])
            raise DataError(
                f"label {int(labels[at])} of image {at} is out of range for {len(self.class_names)} classes"
            )
        return labels
