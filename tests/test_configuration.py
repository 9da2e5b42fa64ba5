"""A config holds together or is refused at birth, and survives every trip through JSON."""

import itertools
import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, DeiTConfig, ViTConfig

from edvit_hf.auto import EDViTConfig


def sub_config(num_labels, config_class=ViTConfig, **fields):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"image_size": 8, "patch_size": 4, "num_labels": num_labels}
    return config_class(**(sizes | fields)).to_dict()


def make_config(groups, **fields):
    fields = {"sub_model_configs": [sub_config(len(group) + 1) for group in groups], **fields}
    return EDViTConfig(class_groups=groups, **fields)


def same(a, b):
    return json.loads(a.to_json_string()) == json.loads(b.to_json_string()) and a.id2label == b.id2label


@st.composite
def class_splits(draw):
    classes = draw(st.permutations(range(draw(st.integers(1, 9)))))
    cuts = sorted(draw(st.sets(st.integers(1, len(classes) - 1)))) if len(classes) > 1 else []
    edges = [0, *cuts, len(classes)]
    return [list(classes[a:b]) for a, b in itertools.pairwise(edges)]


# P-1: a list of configs inside a config cannot be written as JSON unless `to_dict` is overridden.
@settings(deadline=None, max_examples=15)
@given(groups=class_splits(), data=st.data())
def test_any_split_with_mixed_architectures_survives_dict_and_json(groups, data, tmp_path_factory):
    kinds = [data.draw(st.sampled_from([ViTConfig, DeiTConfig])) for _ in groups]
    subs = [sub_config(len(g) + 1, kind, head_dim=2) for g, kind in zip(groups, kinds, strict=True)]
    config = make_config(groups, sub_model_configs=subs, parent={"id": "teacher", "parameters": 7})
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    loaded = EDViTConfig.from_pretrained(folder)
    assert same(EDViTConfig.from_dict(config.to_dict()), config)
    assert same(loaded, config)
    assert loaded.class_groups == groups
    assert loaded.sub_model_configs == config.sub_model_configs
    assert [type(loaded.sub_model_config(i)) for i in range(len(groups))] == kinds
    assert all(loaded.sub_model_config(i).head_dim == 2 for i in range(len(groups)))


@pytest.mark.parametrize(
    ("groups", "fields", "message"),
    [
        ([[0, 1], [1, 2]], {}, r"exactly one class group.*twice: \[1\]"),
        ([[0], [2]], {"id2label": {0: "a", 1: "b", 2: "c"}}, r"nowhere: \[1\]"),
        ([[0], [5]], {}, r"out of range: \[5\]"),
        ([[0, 1], []], {}, "at least one class in every group"),
        ([], {}, "one class group per sub-model"),
        ([[0], [1]], {"sub_model_configs": [sub_config(2)]}, "got 2 groups for 1"),
        ([[0], [1]], {"sub_model_configs": [sub_config(2), sub_config(3)]}, "sub-model 1 to have 2 labels"),
        ([[0], [1]], {"sub_model_configs": [sub_config(1), sub_config(2)]}, "sub-model 0 to have 2 labels"),
        ([[0], [1]], {"sub_model_configs": [sub_config(2), sub_config(2, image_size=12)]}, "image size"),
        ([[0], [1]], {"sub_model_configs": [sub_config(2), sub_config(2, num_channels=1)]}, "channels"),
        ([[0], [1]], {"sub_model_configs": [sub_config(2), {"hidden_size": 8}]}, "name a `model_type`"),
        ([[0]], {"sub_model_configs": [{"model_type": "bert", "head_dim": 4}]}, "supported architecture"),
        ([[0], [1]], {"id2label": {0: "a", 2: "b"}}, r"keys 0\.\.1, got \[0, 2\]"),
        ([[0], [1]], {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "inverse"),
        ([[0], [1]], {"num_labels": 7}, "got num_labels=7"),
        ([[0], [1]], {"fusion_dropout": 1.0}, r"`fusion_dropout` is .* in \[0, 1\)"),
        ([[0], [1]], {"sub_model_dropout": -0.1}, r"`sub_model_dropout` is .* in \[0, 1\)"),
        ([[0], [1]], {"fusion_hidden_size": -1}, "`fusion_hidden_size` must be 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(groups, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(groups, **fields)


def test_a_misspelt_field_is_refused_and_the_nearest_one_named():
    with pytest.raises(ValueError, match=r"`fusion_hiden_size`.*Did you mean `fusion_hidden_size`\?"):
        make_config([[0], [1]], fusion_hiden_size=4)


def test_a_misspelt_field_in_config_json_is_refused(tmp_path):
    make_config([[0], [1]]).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"fusion_droput": 0.5}))
    with pytest.raises(ValueError, match="Did you mean `fusion_dropout`"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_misspelt_field_set_later_is_refused_on_save(tmp_path):
    config = make_config([[0], [1]])
    config.sub_model_droput = 0.5
    with pytest.raises(StrictDataclassError, match="Did you mean `sub_model_dropout`"):
        config.save_pretrained(tmp_path)


def test_field_types_are_checked_at_birth_and_on_assignment():
    with pytest.raises(StrictDataclassError, match="fusion_hidden_size"):
        make_config([[0], [1]], fusion_hidden_size="12")
    config = make_config([[0], [1]])
    with pytest.raises(StrictDataclassError, match="class_groups"):
        config.class_groups = [["cat"]]


def test_labels_come_from_the_groups_when_none_are_given():
    config = make_config([[2, 0], [1]])
    assert config.num_labels == 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


# P-11: `num_labels=7` over saved labels resizes the head and leaves names that do not fit.
def test_overriding_labels_on_load_renames_both_ways_and_is_validated(tmp_path):
    make_config([[0], [1]], id2label={0: "a", 1: "b"}).save_pretrained(tmp_path)
    config = EDViTConfig.from_pretrained(tmp_path, id2label={0: "ant", 1: "bee"})
    assert config.id2label == {0: "ant", 1: "bee"}
    assert config.label2id == {"ant": 0, "bee": 1}
    with pytest.raises(ValueError, match="out of range"):
        EDViTConfig.from_pretrained(tmp_path, id2label={0: "ant"})
    with pytest.raises(ValueError, match="got num_labels=7"):
        EDViTConfig.from_pretrained(tmp_path, num_labels=7)


def test_overriding_a_field_does_not_touch_the_given_dict():
    values = make_config([[0], [1]]).to_dict()
    before = json.dumps(values, default=str)
    assert EDViTConfig.from_dict(values, fusion_hidden_size=3).fusion_hidden_size == 3
    assert json.dumps(values, default=str) == before


def test_sizes_are_read_from_the_sub_models():
    subs = [sub_config(2, hidden_size=8), sub_config(3, hidden_size=16)]
    config = make_config([[0], [1, 2]], sub_model_configs=subs)
    assert config.num_sub_models == 2
    assert config.feature_sizes == [8, 16]
    assert config.hidden_size == 24
    assert (config.image_size, config.num_channels) == (8, 3)


def test_a_single_sub_model_over_all_classes_may_leave_other_out():
    for num_labels, labels in ((2, ["a", "b"]), (3, ["a", "b", "other"])):
        config = make_config([[0, 1]], sub_model_configs=[sub_config(num_labels)], id2label={0: "a", 1: "b"})
        assert list(config.sub_model_labels(0).values()) == labels


def test_two_classes_may_share_a_name():
    config = make_config([[0], [1]], id2label={0: "crane", 1: "crane"})
    assert config.id2label == {0: "crane", 1: "crane"}


def test_auto_map_names_both_travelling_files_for_every_auto_class():
    assert make_config([[0], [1]]).auto_map == {
        "AutoConfig": "configuration_edvit.EDViTConfig",
        "AutoModel": "modeling_edvit.EDViTModel",
        "AutoModelForImageClassification": "modeling_edvit.EDViTForImageClassification",
    }
