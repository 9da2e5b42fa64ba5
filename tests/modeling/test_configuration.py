# SPDX-License-Identifier: Apache-2.0
"""A config holds together or is refused at birth, and survives every trip through JSON."""

import itertools
import json
import time

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ASTConfig, AutoConfig, BertConfig, DeiTConfig, DistilBertConfig, ViTConfig

from edvit_hf import checks_edvit, tasks
from edvit_hf.auto import EDViTConfig
from edvit_hf.checks_edvit import label_names_fault

KINDS = {
    "image-classification": [ViTConfig, DeiTConfig],
    "audio-classification": [ASTConfig],
    "text-classification": [BertConfig, DistilBertConfig],
}
INPUTS = {
    ViTConfig: {"image_size": 8, "patch_size": 4},
    DeiTConfig: {"image_size": 8, "patch_size": 4},
    ASTConfig: {"max_length": 20, "num_mel_bins": 16, "patch_size": 8},
    BertConfig: {"vocab_size": 50, "max_position_embeddings": 16},
    DistilBertConfig: {"vocab_size": 50, "max_position_embeddings": 12},
}


def sub_config(num_labels, config_class=ViTConfig, **fields):
    if config_class is DistilBertConfig:
        sizes = {"dim": 8, "n_heads": 2, "hidden_dim": 8, "n_layers": 1}
    else:
        sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    return config_class(**(sizes | INPUTS[config_class] | {"num_labels": num_labels} | fields)).to_dict()


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
@given(groups=class_splits(), task=st.sampled_from(sorted(KINDS)), data=st.data())
def test_any_split_with_mixed_architectures_survives_dict_and_json(groups, task, data, tmp_path_factory):
    kinds = [data.draw(st.sampled_from(KINDS[task])) for _ in groups]
    thin = {} if task == "text-classification" else {"head_dim": 2}
    subs = [sub_config(len(g) + 1, kind, **thin) for g, kind in zip(groups, kinds, strict=True)]
    config = make_config(groups, sub_model_configs=subs, parent={"id": "teacher", "parameters": 7})
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    loaded = EDViTConfig.from_pretrained(folder)
    assert same(EDViTConfig.from_dict(config.to_dict()), config)
    assert same(loaded, config)
    assert loaded.class_groups == groups
    assert loaded.sub_model_configs == config.sub_model_configs
    assert [type(loaded.sub_model_config(i)) for i in range(len(groups))] == kinds
    assert all(loaded.sub_model_config(i).head_dim == 2 for i in range(len(groups)) if thin)
    assert loaded.task == config.task == task
    assert loaded.feature_sizes == [8] * len(groups)
    assert loaded.auto_map == config.auto_map


@pytest.mark.parametrize(
    ("groups", "fields", "message"),
    [
        ([[0, 1, 0], [2]], {}, r"at least one class group, and once in each.*twice in one group: \[0\]"),
        ([[0, 1], [1, 3]], {"id2label": {0: "a", 1: "b", 2: "c", 3: "d"}}, r"nowhere: \[2\]"),
        ([[-1]], {}, r"out of range: \[-1\]"),
        ([[10**12]], {}, r"out of range: \[1000000000000\]"),
        ([[0], [1]], {"fusion_kind": "mean"}, "`fusion_kind` to be one of mlp, average, residual, got 'mean'"),
        ([[0], [1]], {"fusion_other": "drop"}, "`fusion_other` to be one of None, spread, got 'drop'"),
        ([[0], [1]], {"fusion_kind": "average"}, r"all vote over the same 2 classes .*without some of them: \[0, 1\]"),
        ([[0, 1], [1]], {"fusion_kind": "residual"}, r"Votes over different labels have no mean.*spread"),
        ([[0], [1]], {"focus_groups": [[0]]}, "`focus_groups` to hold, for each of 2 sub-models, distinct classes"),
        ([[0], [1]], {"focus_groups": [[0], [2]]}, r"`focus_groups`.*in 0\.\.1"),
        ([[0], [1]], {"focus_groups": [[0, 0], [1]]}, "`focus_groups`"),
        ([[0], [1]], {"focus_groups": [[], [1]]}, "`focus_groups`"),
        ([[0, 1, 2], [1, 2, 3]], {"focus_groups": [[3], [0]]}, r"`focus_groups`.*class group.*sub-models \[0, 1\]"),
        ([[0, 1], [1]], {"focus_groups": [[0], [1, 0]]}, r"`focus_groups`.*class group.*sub-models \[1\]"),
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
        ([[0]], {"sub_model_configs": [{"model_type": "swin"}]}, "supported architecture"),
        ([[0]], {"sub_model_configs": [{"model_type": "bert", "head_dim": 4}]}, "`head_dim` is ignored by `bert`"),
        ([[0]], {"sub_model_configs": [{"model_type": "distilbert", "head_dim": 4}]}, "ignored by `distilbert`"),
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


@pytest.mark.parametrize(
    ("kind", "field", "value", "what"),
    [
        (ViTConfig, "image_size", 12, "image size and num channels.*image_size=8.*image_size=12.*`pixel_values`"),
        (DeiTConfig, "num_channels", 1, "num_channels=3.*num_channels=1"),
        (ASTConfig, "max_length", 30, "max length and num mel bins.*max_length=20.*max_length=30.*`input_values`"),
        (ASTConfig, "num_mel_bins", 8, "num_mel_bins=16.*num_mel_bins=8"),
        (BertConfig, "vocab_size", 60, "vocab size .*model 0: vocab_size=50; sub-model 1: vocab_size=60.*`input_ids`"),
        (DistilBertConfig, "vocab_size", 60, "vocab_size=50.*vocab_size=60"),
    ],
)
def test_what_sub_models_are_fed_must_be_the_same(kind, field, value, what):
    subs = [sub_config(2, kind), sub_config(2, kind, **{field: value})]
    with pytest.raises(ValueError, match=f"Expected the same .*{what}"):
        make_config([[0], [1]], sub_model_configs=subs)


def test_one_side_and_two_equal_sides_are_the_same_image_size():
    assert make_config([[0], [1]], sub_model_configs=[sub_config(2), sub_config(2, image_size=[8, 8])]).image_size == 8
    with pytest.raises(ValueError, match=r"image_size=8, .*image_size=8x4"):
        make_config([[0], [1]], sub_model_configs=[sub_config(2), sub_config(2, image_size=[8, 4])])


def test_sub_models_may_differ_in_all_but_their_input():
    subs = [sub_config(2), sub_config(3, DeiTConfig, hidden_size=16, num_hidden_layers=3, patch_size=2)]
    assert make_config([[0], [1, 2]], sub_model_configs=subs).feature_sizes == [8, 16]
    subs = [sub_config(2, ASTConfig), sub_config(2, ASTConfig, patch_size=4, time_stride=4, hidden_size=4)]
    assert make_config([[0], [1]], sub_model_configs=subs).feature_sizes == [8, 4]
    subs = [sub_config(2, BertConfig), sub_config(2, DistilBertConfig, dim=16)]
    assert make_config([[0], [1]], sub_model_configs=subs).feature_sizes == [8, 16]


@pytest.mark.parametrize("kinds", itertools.permutations([ViTConfig, ASTConfig, DistilBertConfig], 2))
def test_sub_models_of_two_modalities_are_refused_and_both_named(kinds):
    subs = [sub_config(2, kind) for kind in kinds]
    tasks = [next(task for task, of_task in KINDS.items() if kind in of_task) for kind in kinds]
    named = ".*and ".join(
        f"{task} .sub-model {i}, `{kind.model_type}`" for i, (task, kind) in enumerate(zip(tasks, kinds, strict=True))
    )
    with pytest.raises(ValueError, match=f"Expected sub-models of one task, got {named}"):
        make_config([[0], [1]], sub_model_configs=subs)


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
    audio = make_config([[0]], sub_model_configs=[sub_config(2, ASTConfig)])
    assert (audio.num_frames, audio.num_mel_bins) == (20, 16)
    text = make_config([[0], [1]], sub_model_configs=[sub_config(2, BertConfig), sub_config(2, DistilBertConfig)])
    assert (text.vocab_size, text.max_position_embeddings) == (50, 12)
    assert not hasattr(text, "image_size")
    assert not hasattr(config, "vocab_size")


def test_a_single_sub_model_over_all_classes_may_leave_other_out():
    for num_labels, labels in ((2, ["a", "b"]), (3, ["a", "b", "other"])):
        config = make_config([[0, 1]], sub_model_configs=[sub_config(num_labels)], id2label={0: "a", 1: "b"})
        assert list(config.sub_model_labels(0).values()) == labels


BAD_NAMES = {
    "twice": ["crane", "crane", "c"],
    "empty": ["a", "", "c"],
    "blank": ["a", " \t\u00a0", "c"],
    "reserved": ["a", "b", "other"],
    "a number": ["a", 2, "c"],
    "none": ["a", None, "c"],
    "a truth value": [True, "b", "c"],
    "a list": ["a", ["b"], "c"],
    "half a character": ["a", "b\udc80", "c"],
}
GOOD_NAMES = [["A", "a", "Other"], ["_silence_", "<unk>", "[digit 6]"], ["caf\u00e9", "cafe\u0301", " cafe"]]


@pytest.mark.parametrize("names", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_that_could_not_be_told_apart_are_refused_at_birth_on_reading_and_on_saving(names, tmp_path):
    config = make_config([[0], [1, 2]])
    for key in (int, str):
        id2label = {key(i): name for i, name in enumerate(names)}
        with pytest.raises(ValueError, match="Expected a name of its own for every class in `id2label`: class"):
            make_config([[0], [1, 2]], id2label=id2label)
        with pytest.raises(ValueError, match="Expected a name of its own for every class in `id2label`: class"):
            EDViTConfig.from_dict(config.to_dict() | {"id2label": id2label, "label2id": None})
    config.id2label = dict(enumerate(names))
    with pytest.raises(StrictDataclassError, match="Expected a name of its own"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("names", [*BAD_NAMES.values(), *GOOD_NAMES])
def test_the_file_that_travels_refuses_the_same_names(names):
    assert label_names_fault(names) == tasks.label_names_fault(names)
    assert (label_names_fault(names) is None) == (names in GOOD_NAMES)


@pytest.mark.parametrize("names", GOOD_NAMES)
def test_names_that_only_look_alike_are_kept_as_they_are(names, tmp_path):
    make_config([[0], [1, 2]], id2label=dict(enumerate(names))).save_pretrained(tmp_path)
    assert EDViTConfig.from_pretrained(tmp_path).id2label == dict(enumerate(names))


@pytest.mark.parametrize(
    ("id2label", "label2id", "message"),
    [
        (["a", "b"], None, "Expected `id2label` to map class ids to names"),
        ("ab", None, "Expected `id2label` to map class ids to names"),
        ({"x": "a", 1: "b"}, None, r"keys 0\.\.1, got \['x', 1\]"),
        ({0.5: "a", 1: "b"}, None, r"keys 0\.\.1"),
        ({True: "a", 0: "b"}, None, r"keys 0\.\.1"),
        ({"0": "a", 0: "c", 1: "b"}, None, r"keys 0\.\.2"),
        ({0: "a", 1: "b"}, {"a": 0}, "inverse"),
        ({0: "a", 1: "b"}, {"a": 0, "b": 1, "c": 1}, "inverse"),
        ({0: "a", 1: "b"}, {"a": None, "b": 1}, "inverse"),
        ({0: "a", 1: "b"}, ["a", "b"], "inverse"),
        ({0: "a", 1: "b"}, {"a": "0", "b": "1"}, None),
    ],
)
def test_tables_of_labels_that_disagree_are_refused(id2label, label2id, message):
    if message is None:
        assert make_config([[0], [1]], id2label=id2label, label2id=label2id).id2label == id2label
        return
    with pytest.raises(ValueError, match=message):
        make_config([[0], [1]], id2label=id2label, label2id=label2id)


# What no model can be built from ends in an error of another library, or takes the machine's memory first.
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": -8}, "`hidden_size` of sub-model 1 to be a whole number in 1"),
        ({"hidden_size": 0}, "`hidden_size`"),
        ({"hidden_size": "8"}, "config of sub-model 1 to be that of a stock `vit`"),
        ({"hidden_size": 8.0}, "stock `vit`"),
        ({"hidden_size": True}, "stock `vit`"),
        ({"hidden_size": 2**40}, "`hidden_size`"),
        ({"hidden_size": 9}, "a multiple of its `num_attention_heads`, got 9 and 2"),
        ({"num_attention_heads": 0}, "`num_attention_heads`"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers`"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers`"),
        ({"intermediate_size": 10**10}, "`intermediate_size`"),
        ({"patch_size": 0}, "`patch_size`"),
        ({"patch_size": 16}, "a patch of sub-model 1 to fit into its input"),
        ({"image_size": 10**6}, "`image_size`"),
        ({"image_size": [8, 0]}, "`image_size`"),
        ({"num_channels": -1}, "`num_channels`"),
        ({"head_dim": None}, "`head_dim`"),
        ({"layer_norm_eps": float("nan")}, "`layer_norm_eps` of sub-model 1 to be a finite number"),
        ({"initializer_range": float("inf")}, "`initializer_range`"),
        ({"problem_type": "regression"}, "`problem_type` of sub-model 1"),
        ({"problem_type": "multi_label_classification"}, "`problem_type` of sub-model 1"),
        ({"quantization_config": {"load_in_8bit": True}}, "no `quantization_config`"),
        ({"per_layer_config": {0: {"hidden_size": 4}}}, "no `per_layer_config`"),
        ({"model_type": ["vit"]}, "name a `model_type`"),
        ({"model_type": "edvit"}, "supported architecture"),
        ({"id2label": ["a", "b"]}, "stock `vit`"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_one_is_built(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config([[0], [1]], sub_model_configs=[sub_config(2), sub_config(2) | fields])


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ViTConfig, {"image_size": 2**13, "patch_size": 1, "hidden_size": 2**10}, "4096 layers and 2147483648 param"),
        (BertConfig, {"vocab_size": 10**8}, "`vocab_size`"),
        (BertConfig, {"max_position_embeddings": 0}, "`max_position_embeddings`"),
        (DistilBertConfig, {"hidden_dim": 10**8}, "`hidden_dim`"),
        (DistilBertConfig, {"dim": 9}, "multiple of its `num_attention_heads`|of a stock `distilbert`"),
        (ASTConfig, {"frequency_stride": 0}, "`frequency_stride`"),
        (ASTConfig, {"max_length": 4}, "a patch of sub-model 0 to fit"),
    ],
)
def test_sizes_of_other_architectures_are_checked_by_their_own_names(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config([[0]], sub_model_configs=[sub_config(2, kind) | fields])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion_hidden_size": 10**9}, "at most .* parameters"),
        ({"sub_model_configs": [sub_config(2)] * 1025}, "at most 1024 sub-models, got 1025"),
        ({"sub_model_configs": [sub_config(2, num_hidden_layers=500)] * 9}, "at most 4096 layers"),
        ({"problem_type": "regression"}, "`problem_type` of the ensemble"),
        ({"problem_type": "anything"}, "`problem_type` of the ensemble"),
        ({"dtype": "int8"}, "`dtype` to be one of float16"),
        ({"dtype": "bool"}, "`dtype` to be one of float16"),
    ],
)
def test_an_ensemble_that_none_could_hold_is_refused_before_memory_is_taken(fields, message):
    num = min(len(fields.get("sub_model_configs", "ab")), 9)
    with pytest.raises(ValueError, match=message):
        make_config([[i] for i in range(num)], **fields)


def test_a_million_sub_models_are_refused_before_the_first_is_looked_at():
    start = time.perf_counter()
    with pytest.raises(ValueError, match="at most 1024 sub-models, got 1000000"):
        EDViTConfig.from_dict({"class_groups": [[0]], "sub_model_configs": [sub_config(2)] * 10**6})
    assert time.perf_counter() - start < 5


def test_what_others_set_on_a_config_is_saved_and_comes_back(tmp_path):
    config = make_config([[0], [1]])
    config.use_cache, config.of_my_own = False, {"seen": 3}
    config.save_pretrained(tmp_path)
    for loaded in (EDViTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert loaded.of_my_own == {"seen": 3}
        assert same(loaded, config)


@pytest.mark.parametrize("name", ["task", "hidden_size", "validate_ensemble", "to_dict"])
def test_a_config_file_cannot_replace_what_the_config_does(name):
    with pytest.raises(ValueError, match=f"`{name}` is not a field"):
        EDViTConfig.from_dict(make_config([[0], [1]]).to_dict() | {name: 5})


@pytest.mark.parametrize("name", ["transformers_weights", "per_layer_config", "peft_type"])
def test_fields_that_would_lead_to_other_files_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is not a field"):
        EDViTConfig.from_dict(make_config([[0], [1]]).to_dict() | {name: "adapter_model.bin"})


def test_config_files_that_nobody_writes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    text = json.dumps(make_config([[0], [1]]).to_dict(), default=str)
    for written, message in [
        (text[:-1] + ', "class_groups": [[1], [0]]}', "every name once"),
        ("[" * 100000, "not a valid JSON"),
        ("[1]", "Expected a JSON object"),
        ('{"a": "\xff"}'.encode("latin-1"), "not a valid JSON"),
    ]:
        path.write_bytes(written if isinstance(written, bytes) else written.encode())
        with pytest.raises((ValueError, OSError), match=message):
            EDViTConfig.from_pretrained(tmp_path)
    path.write_text("\ufeff" + text, encoding="utf-8")  # as editors on Windows write it
    assert EDViTConfig.from_pretrained(tmp_path).num_labels == 2
    monkeypatch.setattr(checks_edvit, "MAX_CONFIG_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        EDViTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(("task", "classifier"), zip(KINDS, ["Image", "Audio", "Sequence"], strict=True))
def test_auto_map_names_the_travelling_files_for_every_auto_class_of_the_task(task, classifier):
    config = make_config([[0]], sub_model_configs=[sub_config(2, KINDS[task][0])])
    assert config.auto_map == {
        "AutoConfig": "configuration_edvit.EDViTConfig",
        "AutoModel": "modeling_edvit.EDViTModel",
        f"AutoModelFor{classifier}Classification": f"modeling_edvit.EDViTFor{classifier}Classification",
    }
