"""Classes of videos: means over views, windows as videos of their own, torchvision's network."""

import numpy as np
import pytest
import torch
from clip_classifiers import (
    CLASSES,
    describe_clips,
    noise_frames,
    save_clip_classifier,
    write_noise,
)
from models import randomize
from PIL import Image
from torchvision.models.video import MViT_V2_S_Weights
from torchvision.models.video.mvit import MSBlockConfig, MViT

from mvitv2_det import Classifier, ClipClassifier, UserError
from mvitv2_det.video import open_video, read_stream
from mvitv2_det.video.reading import Frame

pytest.importorskip("av")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_clip_classifier(tmp_path_factory.mktemp("clips") / "model_final.pth")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    files = [write_noise(folder / f"{seed}.mp4", seed, count=50) for seed in range(2)]
    frames = folder / "frames"
    frames.mkdir()
    for number, pixels in enumerate(noise_frames(2, count=20)):
        Image.fromarray(pixels).save(frames / f"{number}.png")
    return [*files, frames]


def network(weights):
    model = describe_clips().build().eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    return model


@pytest.mark.parametrize("crops", [1, 3])
def test_probabilities_are_means_over_clips_and_crops(videos, weights, crops):
    """float32, 1e-6 of probabilities: whatever the batch, also with more views than it holds."""
    classifier = ClipClassifier(weights, crops=crops, batch_size=4, device="cpu")
    input, model = describe_clips({"crops": crops}).input, network(weights)
    expected = []
    for file in videos:
        with open_video(file) as video, torch.no_grad():
            views = input.test_views(video)
            assert len(views) == 2 * crops
            expected.append(
                torch.stack([model(view[None])[0].softmax(0) for view in views]).mean(0)
            )
    actual = classifier.probabilities(videos)
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-6, rtol=1e-5)
    assert len({tuple(row.round(decimals=2).tolist()) for row in actual}) == 3
    for found, row in zip(classifier(videos), actual, strict=True):
        assert [one.number for one in found] == row.argsort(descending=True).tolist()
        assert [CLASSES[one.number] for one in found] == [one.name for one in found]
    with open_video(videos[0]) as video:
        assert classifier(video)[0].name == classifier(videos[0])[0].name


def test_windows_are_classified_as_videos_of_their_own(videos, weights):
    """float32, 1e-6 of probabilities."""
    classifier = ClipClassifier(weights, crops=3, batch_size=5, device="cpu")
    with open_video(videos[0]) as video, torch.no_grad():
        moments = classifier.timeline(video, window=1.0, stride=0.7)
        # 50 frames at 15 a second last 3.33 s: the last window is moved to end with them.
        starts = [0, 0.7, 1.4, 2.1, 50 / 15 - 1]
        assert [moment.start for moment in moments] == pytest.approx(starts)
        assert moments[-1].end == pytest.approx(50 / 15)
        for moment in moments:
            # Two clips of 0.4 s in a second: at its start and at its end.
            views = []
            for start in (moment.start, moment.start + 0.6):
                frames = video.at_seconds(start + np.arange(4) / 10)
                views.append(classifier.input.transform()(frames))
            expected = network(weights)(torch.cat(views)).softmax(1).mean(0)
            for likely in moment.classes:
                expected_one = expected[likely.number].item()
                assert likely.probability == pytest.approx(expected_one, abs=1e-6)


def test_a_stream_gives_windows_as_soon_as_their_frames_have_come(videos, weights):
    classifier = ClipClassifier(weights, device="cpu")
    found = []
    for frame, moments in classifier.watch(read_stream(str(videos[1])), 0.4, 0.8):
        for moment in moments:
            found.append((moment.start, frame.seconds))
    starts = [start for start, _ in found]
    assert starts == pytest.approx([0, 0.8, 1.6, 2.4])
    for start, seen in found:
        # Its last frame is shown at 0.3 s; the one after tells that it was the last.
        assert 0 < seen - (start + 0.3) < 2 / 15
    alone = classifier.timeline(videos[1], 0.4, 0.8)
    assert [moment.start for moment in alone][:4] == pytest.approx(starts)


def test_a_short_window_or_none(weights):
    classifier = ClipClassifier(weights, device="cpu")
    frames = [Frame(i / 10, pixels) for i, pixels in enumerate(noise_frames(0, count=2))]
    ((_, one),) = [item for item in classifier.watch(frames) if item[1]]
    assert (one[0].start, one[0].end) == (0, pytest.approx(0.4))
    for arguments, message in (
        ((0.3,), "at least as long as a clip of the network, 0.4 seconds, got 0.3"),
        ((-1,), "window must be a positive"),
        ((1, 0), "stride must be a positive number of seconds, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            next(classifier.watch(frames, *arguments))


def test_segments(videos, tmp_path):
    input = {"sampling": "segments", "clips": 1}
    classifier = ClipClassifier(save_clip_classifier(tmp_path / "w.pth", input), device="cpu")
    assert [moment.start for moment in classifier.timeline(videos[0])] == pytest.approx([0, 4 / 3])
    assert len(classifier(videos)) == 3


def test_other_frames_rates_and_names(videos, weights):
    names = ("x", "y", "z")
    classifier = ClipClassifier(
        weights, frames=8, rate=2, image_size=96, clips=3, classes=names, squash=True, device="cpu"
    )
    assert classifier.prepare(videos[0]).shape == (3, 3, 8, 96, 96)
    assert {likely.name for likely in classifier(videos[0])} == set(names)
    with pytest.raises(UserError, match=r"input\.crops must be 1 or 3, got 2"):
        ClipClassifier(weights, crops=2, device="cpu")
    with pytest.raises(UserError, match="is of clips: expected one of images"):
        Classifier(weights, device="cpu")


def test_released_weights_give_what_torchvision_gives(videos):
    """float32, 1e-5 of probabilities; the network is found from the shapes alone."""
    # Channels grow in attention, as in torchvision's mvit_v2_s.
    blocks = [
        MSBlockConfig(1, 16, 16, [3] * 3, [3] * 3, [1, 1, 1], [1, 8, 8]),
        MSBlockConfig(2, 16, 32, [3] * 3, [3] * 3, [1, 2, 2], [1, 4, 4]),
        MSBlockConfig(4, 32, 64, [3] * 3, [3] * 3, [1, 2, 2], [1, 2, 2]),
        MSBlockConfig(8, 64, 128, [3] * 3, [3] * 3, [1, 2, 2], [1, 1, 1]),
    ]
    theirs = MViT(
        (64, 64),
        8,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=400,
    )
    randomize(theirs).eval()
    classifier = ClipClassifier(theirs, device="cpu")
    input = classifier.input
    assert (input.frames, input.rate, input.size) == (8, 4, 64)
    assert (input.mean, input.std) == ((0.45,) * 3, (0.225,) * 3)
    views = classifier.prepare(videos[0])
    assert views.shape == (5, 3, 8, 64, 64)
    with torch.no_grad():
        expected = theirs(views).softmax(1).mean(0)
    found = classifier.probabilities(videos[:1])[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    names = MViT_V2_S_Weights.KINETICS400_V1.meta["categories"]
    assert classifier(videos[0])[0].name == names[expected.argmax()]
