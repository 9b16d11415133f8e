"""Finding configs, and overriding them."""

import pytest

import mvitv2_det
from mvitv2_det import UserError, get_config
from mvitv2_det.config import apply_overrides, load_config


@pytest.fixture
def cfg():
    return get_config("cascade_mask_rcnn_mvitv2_t_3x")


def test_get_config_by_name(cfg):
    assert cfg.model.backbone.bottom_up.depth == 10
    assert mvitv2_det.get_config is get_config


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mask_rcnn_mvitv2_t_3x'"):
        get_config("mask_rcnn_mvitv2_tiny_3x")


def test_overrides(cfg):
    apply_overrides(
        cfg,
        [
            "train.max_iter=7",
            "train.init_checkpoint=null",
            "model.roi_heads.box_heads.1.fc_dims=[8]",
            "model.backbone.bottom_up.use_act_checkpoint=true",
            "+train.note=hello",
        ],
    )
    assert cfg.train.max_iter == 7
    assert cfg.train.init_checkpoint is None
    assert cfg.model.roi_heads.box_heads[1].fc_dims == [8]
    assert cfg.model.backbone.bottom_up.use_act_checkpoint is True
    assert cfg.train.note == "hello"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_iters=7", "names no key of the config; did you mean 'train.max_iter'"),
        ("model.backbone.bottom_up.dept=7", "did you mean 'model.backbone.bottom_up.depth'"),
        ("model.roi_heads.box_heads.3.fc_dims=7", "names no key"),
        ("nonsense=7", "names no key"),
        ("train.max_iter", "is not of the form key=value"),
        ("train.max_iter=many", "expected a number, such as 67500"),
        ("train.max_iter=true", "expected a number, such as 67500"),
        ("train.amp.enabled=7", "expected true or false, such as True"),
        ("~train.max_iter", "deletes a key; set it to null"),
        ("train.max_iter.deep=7", "names no key"),
    ],
)
def test_wrong_overrides(cfg, override, words):
    with pytest.raises(UserError, match=words):
        apply_overrides(cfg, [override])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.txt", "", "must end in .py"),
        ("c.py", "model = (", "is no Python"),
        ("c.yaml", "a: [", "is no YAML"),
        ("c.py", "from .none import model", "cannot be loaded"),
    ],
)
def test_files_that_are_no_config(tmp_path, name, text, words):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        load_config(str(file))


def test_missing_file():
    with pytest.raises(UserError, match=r"there is no config file 'none\.py'"):
        load_config("none.py")
