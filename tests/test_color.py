"""Pictures in colour and of other sizes: from their files to trained, exported and compared models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.flop_counter import FlopCounterMode

import inference
import model_utils
from enhanced_glyph_recognition import main
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.data.augment import LEAST_CONTRAST_OF_PAPER, augment, color_transform, vary_paper
from glyphs.data.loaders import Augmentation, TensorLoader, get_data_loaders, make_augmentation, settled
from glyphs.data.survey import any_transparent
from glyphs.models.checkpoint import load_checkpoint, load_model, save_checkpoint, write_checkpoint
from glyphs.models.network import EMNIST_MEAN, EnhancedGlyphCNN, ViewAverage
from glyphs.models.runtime import load_onnx
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.plain import EMNIST_FORM, InputForm, brightness, letterbox, on_paper
from glyphs.reading.predictor import GlyphPredictor
from tests.conftest import refused
from tests.small import NAMES, draw_glyph, save_small_checkpoint, save_small_onnx

pytestmark = pytest.mark.usefixtures("shown_log")

COLOURS = {"blue": (40, 60, 200), "green": (40, 160, 60), "red": (200, 40, 50)}
FORM = InputForm("plain", 32, color=True)


def disc(colour: tuple[int, int, int], number: int, *, transparent: bool = False) -> Image.Image:
    """A disc of the colour, 48x36, here or there."""
    mode, paper = ("RGBA", (0, 0, 0, 0)) if transparent else ("RGB", (230, 225, 220))
    picture = Image.new(mode, (48, 36), paper)
    left, top = 4 + 3 * (number % 6), 2 + number // 6
    ImageDraw.Draw(picture).ellipse((left, top, left + 24, top + 24), fill=(*colour, 255)[: len(mode)])
    return picture


def make_discs(root: Path, count: int = 8, *, transparent: bool = False) -> Path:
    for part, offset in (("train", 0), ("test", count)):
        for name, colour in COLOURS.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(offset, offset + count):
                disc(colour, number, transparent=transparent).save(folder / f"{number}.png")
    return root


def settings(tmp_path: Path, **others: Any) -> dict[str, Any]:
    fixed = {"dataset": "folder", "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    return {**fixed, "device": "cpu", "use_residual": False, **others}


def pixels_of(picture: Image.Image, form: InputForm = FORM) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = preprocess(picture, form).pixels
    assert pixels is not None
    return pixels


# ---- What the network sees ----


def test_pictures_are_letterboxed_neither_cropped_nor_squeezed_nor_inverted() -> None:
    pixels = pixels_of(disc(COLOURS["red"], 0))
    assert pixels.shape == (32, 32, 3)
    is_red = np.abs(pixels.astype(int) - COLOURS["red"]).max(axis=2) < 20
    rows, columns = np.flatnonzero(is_red.any(1)), np.flatnonzero(is_red.any(0))
    assert abs((rows[-1] - rows[0]) - (columns[-1] - columns[0])) <= 1  # still round
    assert np.ptp(columns) + 1 == pytest.approx(24 * 32 / 48, abs=2)
    assert pixels[0, 0].tolist() == pixels[-1, -1].tolist() == [230, 225, 220]  # beside it, its own border


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "F"])
@pytest.mark.parametrize("color", [True, False])
def test_every_kind_of_picture_takes_its_form(mode: str, color: bool) -> None:
    grey = disc(COLOURS["red"], 0).convert("L")
    source = {"I;16": grey.convert("I"), "F": grey.convert("F"), "LAB": grey.convert("RGB")}.get(mode, grey)
    picture = Image.new("LAB", grey.size) if mode == "LAB" else source.convert(mode)
    for size in (20, 33, 160):
        expected = (size, size, 3) if color else (size, size)
        assert pixels_of(picture, InputForm("plain", size, color=color)).shape == expected


def test_what_can_be_seen_through_lies_on_white_and_what_is_light_on_black() -> None:
    assert pixels_of(disc(COLOURS["red"], 0, transparent=True))[0, 0].tolist() == [255] * 3
    assert pixels_of(disc((240, 240, 200), 0, transparent=True))[0, 0].tolist() == [0] * 3


def test_training_varies_the_paper_under_pictures_and_keeps_them_visible() -> None:
    pictures = [disc(colour, 0, transparent=True) for colour in (*COLOURS.values(), (250, 250, 250))] * 8
    layers = np.stack([letterbox(picture, FORM) for picture in pictures])
    laid = vary_paper(layers, np.random.default_rng(0), len(layers), slice(None))
    usual = on_paper(layers)
    same = (laid == usual).all(axis=(1, 2, 3))
    assert 0.3 < same.mean() < 0.8
    papers = laid[:, :1, :1]
    assert len(np.unique(papers[~same].reshape(-1, 3), axis=0)) > 8
    cover = layers[..., -1:] == 255
    seen = np.where(cover, brightness(layers), 0).sum((1, 2, 3)) / cover.sum((1, 2, 3))
    light = brightness(np.concatenate([papers, papers[..., :1]], axis=-1))[:, 0, 0, 0]
    assert (np.abs(light - seen)[~same] > LEAST_CONTRAST_OF_PAPER - 5).all()
    assert (np.where(cover, np.abs(laid.astype(int) - usual), 0) <= 1).all()  # the picture itself stays
    part = vary_paper(layers[1::2], np.random.default_rng(0), len(layers), slice(1, None, 2))
    np.testing.assert_array_equal(part, laid[1::2])  # whichever process lays it


def test_transparent_pictures_train_on_varied_paper_and_are_validated_as_they_are_read(tmp_path: Path) -> None:
    make_discs(tmp_path / "data", transparent=True)
    data = get_data_loaders(settings(tmp_path, image_size=32, val_split=0.4))
    assert data.train.images.shape[1:] == (4, 32, 32)
    [(images, labels)] = list(data.test)
    first = pixels_of(Image.open(tmp_path / "data" / "test" / data.class_names[labels[0]] / "10.png"))
    assert torch.equal(images[0], torch.from_numpy(first).movedim(-1, 0))
    batches = [next(iter(data.train))[0] for _ in range(2)]
    assert batches[0].shape[1:] == (3, 32, 32)
    assert torch.equal(*batches)  # the same epoch, the same papers
    assert len(np.unique(batches[0][:, :, 0, 0].numpy(), axis=0)) > 2


def test_it_is_seen_that_pictures_can_be_seen_through(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("whole.png", "broken.png", "through.png", "drawing.svg")]
    disc(COLOURS["red"], 0).save(paths[0])
    Path(paths[1]).write_bytes(b"no picture")
    disc(COLOURS["red"], 0, transparent=True).save(paths[2])
    assert [any_transparent([path]) for path in paths] == [False, False, True, True]
    assert any_transparent(paths[:3])


def test_what_comes_in_from_outside_a_plain_picture_is_what_its_border_shows() -> None:
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    amounts = {"rotation": 40.0, "shear": 20.0, "translate": 0.3}
    generator = torch.Generator().manual_seed(0)
    whole = augment(white, generator, **amounts, edge="border")
    assert whole.min() > 0.99


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_patches_are_painted_over_and_nothing_is_mirrored_unasked(channels: int) -> None:
    image = torch.full((channels, 32, 32), 0.5)
    image[:, 8:24, 4:10] = 0.2  # on the left
    torch.manual_seed(0)
    plain, erased = (color_transform(0.4, share, mirror=False) for share in (0.0, 0.99))
    changed = torch.stack([plain(image) for _ in range(50)])
    assert changed.min() >= 0
    assert changed.max() <= 1
    means = changed.mean((1, 2, 3))
    assert 0.25 < means.min() < 0.4
    assert 0.55 < means.max() < 0.7
    assert (changed[..., :16].mean((1, 2, 3)) < changed[..., 16:].mean((1, 2, 3))).all()
    noisy = [((erased(image) - image).abs().amax(0) > 1e-3).float().mean() for _ in range(20)]
    assert max(noisy) == 1  # jitter is on, too
    painted = torch.stack([color_transform(0, 0.99, mirror=False)(image) for _ in range(50)])
    shares = ((painted - image).abs().amax(1) > 1e-3).float().mean((1, 2))
    assert shares[shares > 0].min() > 0.015
    assert shares.max() < 0.075
    turned = torch.stack([color_transform(0, 0, mirror=True)(image) for _ in range(50)])
    assert 10 < sum(torch.equal(each, image.flip(-1)) for each in turned) < 40


def test_what_an_image_goes_through_follows_from_seed_epoch_step_and_place() -> None:
    images = torch.randint(256, (12, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    distorted = Augmentation(10, 5, 0.05, "border", color_transform(0.4, 0.5, mirror=True))
    loader = TensorLoader(images, torch.arange(12), 5, shuffle_seed=3, augmentation=distorted)
    whole = [batch for batch, _ in loader]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = [batch for batch, _ in loader]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    for number in range(2):
        for part, batch in zip(loader.share(number, 2), whole, strict=True):
            assert torch.equal(part[0], batch[number::2])
    loader.seek(1, 0)
    assert not torch.equal(next(iter(loader))[0], whole[0])


def test_characters_keep_their_colours() -> None:
    assert make_augmentation(Config(), EMNIST_FORM) == Augmentation(15, 10, 0.08)
    plain = make_augmentation(Config(), FORM)
    assert plain is not None
    assert plain.then is not None
    nothing = Config(rotation_degree=0, affine_degree=0, translate=0, color_jitter=0, erasing=0)
    assert make_augmentation(nothing, FORM) is None
    assert make_augmentation(nothing, EMNIST_FORM) is None


def test_the_first_batch_is_drawn_and_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_discs(tmp_path / "data")
    command = ["--dataset", "folder", "--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    main([*command, "--show-batch"])
    assert "batch.png; not mirrored, as symbols may mean something else then (--mirror)" in capsys.readouterr().err
    with Image.open(tmp_path / "out" / "batch.png") as drawing:
        assert min(drawing.size) > 300
    assert not list((tmp_path / "out").glob("*.pth"))
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--show-batch", "--lr-finder"])


# ---- What is chosen ----


def test_coloured_pictures_are_taken_as_they_are_and_it_is_said_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_discs(tmp_path / "data")
    config = settled(settings(tmp_path))
    assert (config.preprocess, config.image_size, config.color) == ("plain", 48, "on")
    said = capsys.readouterr().err
    assert "as they are (--preprocess plain), since they are in colours, in 48x48 pixels, in colour" in said
    assert said.count("\n") == 1
    assert settled(config) == config
    assert capsys.readouterr().err == ""


def test_characters_in_one_ink_are_brought_to_emnists_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, numbers in (("a", range(5)), ("b", range(5, 10))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in numbers:
            draw_glyph(number).save(tmp_path / "data" / name / f"{number}.png")
    config = settled(settings(tmp_path))
    assert (config.preprocess, config.image_size, config.color) == ("glyph", 28, "off")
    assert "100% show one character in one ink" in capsys.readouterr().err
    grey = settled(settings(tmp_path, preprocess="plain"))
    assert (grey.preprocess, grey.image_size, grey.color) == ("plain", 64, "off")
    Image.new("L", (80, 80), 255).save(tmp_path / "data" / "a" / "blank.png")
    assert settled(settings(tmp_path)).preprocess == "plain"
    assert "since 9% of them show no single character" in capsys.readouterr().err


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    make_discs(tmp_path / "data")
    with refused(ConfigError, "--preprocess glyph makes images of 28x28 pixels, grey", "--preprocess plain"):
        settled(settings(tmp_path, preprocess="glyph", image_size=40))
    with refused(ConfigError, "--image-size", "--dataset folder"):
        settled({"image_size": 40})
    with refused(ConfigError, "image_size is 161: it must be from 20 to 160"):
        Config(image_size=161)
    assert settled({"image_size": 28}) == settled({})


def test_fine_tuning_keeps_the_form_of_what_it_starts_from(tmp_path: Path) -> None:
    make_discs(tmp_path / "data")
    small = save_small_checkpoint(tmp_path / "small.pth")
    config = settled(settings(tmp_path, finetune=str(small)))
    assert (config.preprocess, config.image_size, config.color) == ("glyph", 28, "off")
    command = ["--dataset", "folder", "--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    with refused(ConfigError, "--finetune", "28x28 pixels, grey (glyph)", "40x40 pixels, in colour (plain)"):
        main([*command, "--finetune", str(small), "--no-use-residual", "--image-size", "40", "--color", "on"])


# ---- The network ----


def test_views_of_a_plain_picture_have_no_black_corners() -> None:
    class Darkest(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.amin((1, 2, 3), keepdim=True)[:, 0, 0]

    white = torch.ones(2, 3, 32, 32)
    assert ViewAverage(Darkest(), FORM.edge)(white).min() > 0.99
    assert ViewAverage(Darkest(), EMNIST_FORM.edge)(white).max() < 0.5


def test_the_cost_follows_the_number_of_pixels_and_colour_costs_the_first_convolution_only() -> None:
    def multiply_adds(channels: int, size: int) -> int:
        model = EnhancedGlyphCNN(7, use_residual=False, channels=channels).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, channels, size, size))
        return int(counter.get_total_flops()) // 2

    assert multiply_adds(1, 160) / multiply_adds(1, 40) == pytest.approx(16, rel=0.01)
    assert multiply_adds(3, 40) - multiply_adds(1, 40) == 2 * 36 * 32 * 20 * 20


def test_the_network_is_called_as_ever_and_says_what_it_takes() -> None:
    model = EnhancedGlyphCNN(7, 0.4, True)
    assert (model.channels, model.mean.shape) == (1, ())
    assert float(model.mean) == pytest.approx(EMNIST_MEAN)
    with refused(ConfigError, "takes images of 1 channels, not of 3", "channels=3"):
        model(torch.zeros(1, 3, 28, 28))


def test_means_and_deviations_are_those_of_the_training_images() -> None:
    images = torch.randint(256, (50, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, 0] //= 2
    loader = TensorLoader(images, torch.zeros(50, dtype=torch.int64), 16, shuffle_seed=1)
    model = EnhancedGlyphCNN(2, use_residual=False, channels=3)
    model.normalise_by(*loader.statistics())
    floats = images.double() / 255
    torch.testing.assert_close(model.mean.flatten().double(), floats.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.std.flatten().double(), floats.std((0, 2, 3), correction=0), atol=1e-6, rtol=1e-5)


# ---- Whole runs ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on discs in three colours; DATA/ beside OUT/."""
    folder = tmp_path_factory.mktemp("discs")
    make_discs(folder / "data", 12)
    flags = "--dataset folder --device cpu --no-use-residual --image-size 32 --epochs 12 --batch-size 8 --val-split 0.3"
    more = "--learning-rate 0.01 --early-stopping-patience 12 --seed 1"
    places = ["--data-dir", str(folder / "data"), "--output-dir", str(folder / "out")]
    main([*flags.split(), *more.split(), *places])
    return folder


@pytest.mark.slow
def test_colours_are_told_apart_and_reported_in_colour(trained: Path, tmp_path: Path) -> None:
    metrics = json.loads((trained / "out" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.8
    content = load_checkpoint(trained / "out" / "best_model.pth")
    assert {name: content["config"][name] for name in ("preprocess", "image_size", "color")} == {
        "preprocess": "plain", "image_size": 32, "color": "on",
    }  # fmt: skip
    assert content["model"]["mean"].flatten().tolist() == pytest.approx([0.7, 0.7, 0.7], abs=0.2)
    predictor = GlyphPredictor(trained / "out" / "best_model.pth")
    [(prediction, pixels)] = predictor.stream([(None, disc(COLOURS["green"], 3))])
    assert prediction.prediction == "green"
    assert pixels is not None
    np.testing.assert_array_equal(pixels, pixels_of(disc(COLOURS["green"], 3)))
    picture = tmp_path / "green.png"
    disc(COLOURS["green"], 3).save(picture)
    arguments = ["--model", str(predictor.path), "--image", str(picture)]
    inference.main([*arguments, "--save-preprocessed", str(tmp_path / "saw"), "--visualize", str(tmp_path / "d.png")])
    with Image.open(tmp_path / "saw" / "green.png.png") as saw:
        np.testing.assert_array_equal(np.asarray(saw), pixels)
    with refused(ConfigError, "sees images of 32x32 pixels, in colour", "--preprocess glyph"):
        inference.main([*arguments, "--preprocess", "glyph"])


@pytest.mark.slow
def test_exports_analysis_and_comparison_carry_size_and_colour(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, data = trained / "out" / "best_model.pth", str(trained / "data")
    exported = {}
    for format, suffix in (("onnx", ".onnx"), ("onnx-int8", ".int8.onnx"), ("pt2", ".pt2")):
        exported[format] = tmp_path / f"discs{suffix}"
        options = ["--data-dir", data, "--force"] if format == "onnx-int8" else []
        model_utils.main(["--export", str(best), "--output", str(exported[format]), *options])
    assert load_onnx(exported["onnx"], "cpu").form == FORM
    reader = GlyphPredictor(exported["onnx-int8"])
    assert reader.predict(disc(COLOURS["blue"], 2)).prediction == "blue"
    other = tmp_path / "other.pth"
    torch.manual_seed(0)
    config = Config.from_dict(load_checkpoint(best)["config"] | {"image_size": 20})
    save_checkpoint(other, EnhancedGlyphCNN(3, use_residual=False, channels=3), config, sorted(COLOURS), metrics={})
    capsys.readouterr()
    model_utils.main(["--compare", str(best), str(other), "--data-dir", data, "--output", str(tmp_path / "c.json")])
    rows = json.loads((tmp_path / "c.json").read_text())["models"]
    assert rows[0]["accuracy"] == json.loads((trained / "out" / "metrics.json").read_text())["accuracy"]
    assert "accuracy" in rows[1]
    assert rows[0]["multiply_adds"] > 2 * rows[1]["multiply_adds"]
    model_utils.main(["--analyze", str(exported["onnx"]), "--output", str(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text())["image"] == "32x32 pixels, in colour"


@pytest.mark.slow
def test_a_run_in_colour_goes_on_as_it_began(trained: Path) -> None:
    latest = trained / "out" / "latest_checkpoint.pth"
    before = json.loads((trained / "out" / "metrics.json").read_text())
    with refused(ConfigError, "--image-size", "32", "40"):
        main(["--resume", str(latest), "--image-size", "40"])
    main(["--evaluate", str(trained / "out" / "best_model.pth"), "--data-dir", str(trained / "data")])
    again = json.loads((trained / "out" / "metrics.json").read_text())
    assert (again["n"], again["accuracy"]) == (before["n"], before["accuracy"])


# ---- Files from before ----


def test_older_checkpoints_and_exports_see_what_they_were_trained_on(tmp_path: Path) -> None:
    path = save_small_checkpoint(tmp_path / "old.pth")
    content = load_checkpoint(path)
    for mode, expected in (("glyph", EMNIST_FORM), ("plain", InputForm("inverted"))):
        older = {name: value for name, value in content["config"].items() if name not in ("image_size", "color")}
        write_checkpoint(path, content | {"config": older | {"preprocess": mode}})
        assert GlyphPredictor(path).form == expected
        assert load_model(path)[1].image_size == 28
        metadata = {"format": "1", "class_names": json.dumps(NAMES), "preprocess": mode}
        assert load_onnx(save_small_onnx(tmp_path / "old.onnx", metadata), "cpu").form == expected
    pixels = preprocess(np.full((9, 9), 255, np.uint8), InputForm("inverted")).pixels
    assert pixels is not None
    assert pixels.max() == 0


def test_an_export_whose_settings_are_no_settings_is_refused(tmp_path: Path) -> None:
    metadata = {"format": "1", "class_names": json.dumps(NAMES), "settings": json.dumps({"image_size": 10**6})}
    with refused(CheckpointError, "old.onnx", "is damaged", "image_size is 1000000"):
        load_onnx(save_small_onnx(tmp_path / "old.onnx", metadata), "cpu")
